"""A machine for what looks for devices and needs none."""

from collections.abc import Sequence

from supervisor.telemetry.port import DeviceInfo


class HostAlone:
    """A machine without a GPU, for as long as `gpu` is the host."""

    problems: tuple[str, ...] = ()
    gpu = "host"

    def devices(self) -> Sequence[DeviceInfo]:
        return ()

    def gpus(self) -> tuple[str, ...]:
        return () if self.gpu == "host" else (self.gpu,)
