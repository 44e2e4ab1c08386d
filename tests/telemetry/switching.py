"""What the tests of switches on a simulated GPU share: profiles, orders, and who else is there."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from lab.drivers.nvidia import GIB

from tests.conftest import RunningController, StartController
from tests.patience import PATIENCE_S

VRAM_SERVER = Path(__file__).with_name("vram_server.py")

EXCLUSIVE: Mapping[str, Any] = {"gpu0": {"exclusive": True}, "host": {"exclusive": True}}

StartOnGpu = Callable[..., Awaitable[RunningController]]
"""Takes profiles by model: `chat=profile(…)`; `models` changes the catalogue's entries."""

MODELS: Mapping[str, Mapping[str, str]] = {
    "chat": {"path": "demo-chat.gguf"},
    "other": {"path": "bench-chat.gguf"},
    "vectors": {"path": "minilm.gguf", "type": "embedding"},
}


def profile(
    held_gib: float = 0,
    *,
    need_gib: float | None = None,
    mode: str = "generation",
    device: str | list[str] | None = None,
    release_after_s: float = 0.0,
    release_steps: int = 1,
    env: Mapping[str, str] | None = None,
    fallback_profile: str | None = None,
    tensor_split: tuple[float, ...] | None = None,
    main_gpu: int | None = None,
    **memory: Any,
) -> dict[str, Any]:
    """A profile whose server takes `held_gib`, which is its need unless another is stated.

    It does so of the first GPU, unless others are named (`device="gpu"`: whichever is chosen).
    Further keyword arguments go under `memory:`.
    """
    taken = {
        "VRAM_BYTES": str(int(held_gib * GIB)),
        "VRAM_RELEASE_AFTER_S": str(release_after_s),
        "VRAM_RELEASE_STEPS": str(release_steps),
    }
    need_bytes = int((held_gib if need_gib is None else need_gib) * GIB)
    return {
        "mode": mode,
        "device": device or ("gpu" if tensor_split or main_gpu is not None else "gpu0"),
        "engine": "llama-server",
        "env": taken | dict(env or {}),
        "env_passthrough": ["SIMULATED_*"],
        "memory": {"need_bytes": need_bytes, "release_timeout_s": 5.0} | memory,
        "fallback_profile": fallback_profile,
        "tensor_split": list(tensor_split) if tensor_split else None,
        "main_gpu": main_gpu,
    }


async def start_on_gpu(
    start_controller: StartController,
    folder: Path,
    *,
    further: Mapping[str, Any] | None = None,
    devices: Mapping[str, Any] = EXCLUSIVE,
    auto_switch: bool = False,
    models: Mapping[str, Any] | None = None,
    switch: Mapping[str, Any] | None = None,
    **profiles: Mapping[str, Any],
) -> RunningController:
    """Start a controller whose servers are `vram_server.py`, with a profile for each model.

    `further` are profiles that no model names, `devices` what each device may carry, and with
    `auto_switch` requests may switch.
    """
    binary = folder / "llama-server"
    if not binary.exists():
        binary.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {VRAM_SERVER} "$@"\n')
        binary.chmod(0o700)
    settings = {
        "engines": {"llama_server_bin": str(binary)},
        "devices": {**devices},
        "switch": {"warm_start": False, **(switch or {})},
    }
    chosen = models or {}
    entries = {
        name: {**MODELS[name], "profile": f"for-{name}", **chosen.get(name, {})}
        for name in profiles
    }
    files = {f"for-{name}.yaml": dict(content) for name, content in profiles.items()}
    files |= {f"{name}.yaml": content for name, content in (further or {}).items()}
    return await start_controller(
        files={"supervisor.yaml": settings, "models.yaml": {"models": entries}, **files},
        auto_switch=auto_switch,
    )


async def order(controller: RunningController, model: str, **options: Any) -> Any:
    """Order a switch, and return what is answered, whatever the status."""
    body = {"model_name": model, **options}
    return await controller.json("POST", "/switch-backend", body)


async def refusal(controller: RunningController, model: str, **options: Any) -> dict[str, Any]:
    """Order a switch that fails, and return the error."""
    answer = await order(controller, model, **options)
    assert "error" in answer, answer
    assert answer.get("outcome") is None, answer
    return dict(answer["error"])


async def live(controller: RunningController) -> dict[str, int]:
    """Give the process ids of the servers that run, by model."""
    status = await controller.json("GET", "/status")
    return {each["model"]: each["pid"] for each in status["backends"]}


@asynccontextmanager
async def switch_in_phase(
    controller: RunningController, model: str, phase: str
) -> AsyncIterator[asyncio.Task[Any]]:
    """Order a switch, and go on once it is in a phase; the task is its answer to come."""
    task = asyncio.create_task(order(controller, model))
    async with asyncio.timeout(PATIENCE_S):
        while True:
            now = (await controller.json("GET", "/switches"))["switches"][0]
            if now.get("phase") == phase:
                break
            assert not task.done(), task.result()
    yield task
    await task


@contextmanager
def tenant() -> Iterator[int]:
    """Run a foreign process that may hold memory; its name is `sleep`."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process.pid
        process.kill()
