"""Programs that are asked about themselves, and do not answer."""

from pathlib import Path

import psutil
import pytest

from supervisor.engine.kinds import probe
from supervisor.engine.kinds.probe import Probes
from supervisor.errors import EngineError


def test_program_that_does_not_end_is_ended_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PROBE_TIMEOUT_S", 0.3)
    noted = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {noted}; exec sleep 600"

    with pytest.raises(EngineError, match="timed out"):
        Probes().ask(("/bin/sh", "-c", script), Path("/bin/sh"))

    pid = int(noted.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
