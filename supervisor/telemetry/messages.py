"""What the controller and a sampler process say to each other: one JSON value a line.

Requests are answered in their order, each with one line, so that several can be under way.
"""

import msgspec

from supervisor.core.machine.memory import MemorySample
from supervisor.telemetry.port import DeviceInfo, DeviceReading


class ListDevices(msgspec.Struct, frozen=True, tag="list"):
    """Open the vendor's library and list its devices; answered by DevicesFound."""


class SampleDevice(msgspec.Struct, frozen=True, tag="sample"):
    """Read a device's memory; answered by MemoryRead."""

    device: str
    child_pids: tuple[int, ...]
    former_pids: tuple[int, ...] = ()


class ReadDevice(msgspec.Struct, frozen=True, tag="read"):
    """Read everything that a device reports; answered by DeviceRead."""

    device: str
    child_pids: tuple[int, ...]


class DevicesFound(msgspec.Struct, frozen=True, tag="found"):
    """The devices, their ids those of the vendor's reader."""

    devices: tuple[DeviceInfo, ...]


class MemoryRead(msgspec.Struct, frozen=True, tag="memory"):
    """One sample."""

    sample: MemorySample


class DeviceRead(msgspec.Struct, frozen=True, tag="reading"):
    """One full reading."""

    reading: DeviceReading


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The reason and remedy; `is_absent` where the vendor has nothing on this machine."""

    reason: str
    is_absent: bool = False


Request = ListDevices | SampleDevice | ReadDevice
Answer = DevicesFound | MemoryRead | DeviceRead | Failed

encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Request).decode
decode_answer = msgspec.json.Decoder(Answer).decode
