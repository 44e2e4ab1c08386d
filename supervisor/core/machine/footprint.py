"""What a backend takes, device by device, and the use that each device had before it."""

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct


class Footprint(Struct, frozen=True, kw_only=True):
    """Bytes per device. A model that is split over GPUs, or leaves layers to the host, has several.

    Of a release that leaves the server alive, what it keeps is its footprint from then on.
    """

    shares: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, bytes_by_device: Mapping[str, int]) -> "Footprint":
        """Build one from bytes by device."""
        return cls(shares=tuple(bytes_by_device.items()))

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that it is on."""
        return tuple(device for device, _ in self.shares)

    @property
    def total_bytes(self) -> int:
        """What is taken of all devices together."""
        return sum(size for _, size in self.shares)

    def on(self, *devices: str) -> int:
        """Return what is taken of these devices together."""
        return sum(size for device, size in self.shares if device in devices)

    def among(self, devices: Collection[str]) -> "Footprint":
        """Return the part that is on these devices."""
        return Footprint(shares=tuple(share for share in self.shares if share[0] in devices))


class Baseline(Struct, frozen=True, kw_only=True):
    """The use of a device that it should return to, and others' part of it where that is known.

    `exits`: so many servers have ended there since, whose memory was not seen to be back. Drivers
    keep a little of each (llama.cpp#24330), which raises the use that there is without any.
    """

    device: str
    used_bytes: int
    foreign_bytes: int | None = None
    exits: int = 0


def baseline_on(baselines: Iterable[Baseline], device: str) -> Baseline | None:
    """Return the baseline of a device, where it is among these."""
    return next((baseline for baseline in baselines if baseline.device == device), None)
