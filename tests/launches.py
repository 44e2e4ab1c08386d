"""Launches of backends without a server."""

from pathlib import Path

from supervisor.core.machine.values import Target
from supervisor.engine.port import Address, Launch


def launch_of(target: Target, epoch: int) -> Launch:
    """Give the launch that a target's backend of an epoch would have: no command, one address."""
    return Launch(
        argv=(),
        env={},
        address=Address(socket_path=Path(f"/run/backend-{epoch}.sock")),
        api_key="",
        model=target.model,
        profile=target.profile,
        epoch=epoch,
    )
