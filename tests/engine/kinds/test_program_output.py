"""Programs that are asked about themselves, and do not answer."""

from pathlib import Path

import psutil
import pytest

from supervisor.engine.kinds import program_output
from supervisor.engine.kinds.program_output import ProgramOutputs
from supervisor.errors import EngineError
from tests.engine.conftest import Eventually


async def test_program_that_does_not_end_is_ended_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(program_output, "ANSWER_TIMEOUT_S", 0.3)
    noted = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {noted}; exec sleep 600"

    with pytest.raises(EngineError, match="timed out"):
        ProgramOutputs().of(("/bin/sh", "-c", script), Path("/bin/sh"))

    pid = int(noted.read_text())
    await eventually(lambda: has_ended(pid))


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for somebody to reap it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
