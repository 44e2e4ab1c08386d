"""What the release gate costs where memory is given back at once: three samples, and no more."""

from pathlib import Path

from supervisor.core.machine.values import Outcome, Phase
from tests.telemetry.gated_world import open_world


async def test_immediate_release_is_confirmed_by_the_first_samples_that_can_prove_it(
    tmp_path: Path, nvml_library: Path
) -> None:
    """Three in a row prove it, at 0, 5 and 10 ms; what they take is the bench's to measure."""
    machine = open_world(tmp_path / "machine", "NVIDIA", nvml_library, is_exclusive=True)
    async with machine as world:
        for number in range(50):
            report = await world.switch_to(("small", "middle")[number % 2])
            assert report.outcome is Outcome.SWITCHED
            assert report.memory.samples_taken == 3
            assert dict(report.phase_seconds)[Phase.CONFIRMING] >= 0.010
        assert world.faults == []
