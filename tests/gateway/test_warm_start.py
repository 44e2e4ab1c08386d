"""The target's file is read into the page cache while its predecessor drains."""

import os
import shutil
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from supervisor.engine.models.page_cache import look_at_chunks
from tests.conftest import StartController
from tests.gateway.conftest import ask_json, endless_stream, shipped, until


def drop_from_cache(path: Path) -> None:
    """Write the file out and drop its pages, so that a start would have to read the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def missing_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.missing_bytes for chunk in look_at_chunks(path, file.fileno()))


def files(model: Path, **switch: Any) -> dict[str, Any]:
    """Let minilm be a file of our own, and a drain take as long as its requests do."""
    catalogue = shipped("models.yaml", default_model=None)
    catalogue["models"]["minilm"]["path"] = str(model)
    settings = shipped("supervisor.yaml", switch={"drain_policy": "wait", **switch})
    return {"models.yaml": catalogue, "supervisor.yaml": settings}


async def test_cold_file_is_resident_before_the_old_model_has_stopped(
    start_controller: StartController, models_dir: Path, tmp_path: Path
) -> None:
    model = tmp_path / "cold.gguf"
    shutil.copy(models_dir / "minilm.gguf", model)
    controller = await start_controller(files=files(model))
    await controller.switch_to("bench-chat")
    drop_from_cache(model)
    cold_bytes = missing_bytes(model)
    assert cold_bytes > model.stat().st_size // 2

    async def is_resident() -> bool:
        return not missing_bytes(model)

    with capture_logs() as lines:
        async with endless_stream(controller):
            order = {"model_name": "minilm", "wait": False}
            assert (await ask_json(controller, "POST", "/switch-backend", order))[0] == 202
            await until(is_resident)
            running = (await controller.json("GET", "/status"))["switch"]
            assert running["phase"] == "draining"

    (warmed,) = [line for line in lines if line["event"] == "model.warmed"]
    assert warmed["read_bytes"] + warmed["resident_bytes"] == model.stat().st_size
    assert warmed["read_bytes"] > 0
    assert warmed["stopped_because"] is None


async def test_operator_may_want_no_file_read_ahead(
    start_controller: StartController, models_dir: Path
) -> None:
    controller = await start_controller(files=files(models_dir / "minilm.gguf", warm_start=False))
    with capture_logs() as lines:
        report = await controller.switch_to("minilm")
    assert "warming" not in report["seconds"]
    assert not [line for line in lines if line["event"] == "model.warmed"]
