"""The sampler process: the only place where a vendor's library is loaded.

It answers requests (messages.py) on the socket that is its standard input, one after another, and
ends with the controller: the socket is closed then, and the kernel's parent-death signal also ends
a call that hangs. It imports no more than it needs, because it starts with the controller and
stays beside it.
"""

import os
import sys
from contextlib import suppress

from supervisor.errors import TelemetryError
from supervisor.own_process import end_with_parent
from supervisor.telemetry.messages import (
    Answer,
    DeviceRead,
    DevicesFound,
    Failed,
    ListDevices,
    MemoryRead,
    ReadDevice,
    Request,
    SampleDevice,
    decode_request,
    encode,
)
from supervisor.telemetry.port import DeviceReader, VendorAbsentError
from supervisor.telemetry.vendors import VENDORS

_SOCKET = 0


def main(vendor: str, parent_pid: int) -> None:
    """Serve the readings of one vendor's devices until the controller closes the socket."""
    end_with_parent(parent_pid)
    reader = VENDORS[vendor].open_reader()
    with suppress(BrokenPipeError, ConnectionResetError):
        _serve(reader)
    reader.close()


def _serve(reader: DeviceReader) -> None:
    rest = b""
    while chunk := os.read(_SOCKET, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _send(encode(_answer(reader, decode_request(line))) + b"\n")


def _answer(reader: DeviceReader, request: Request) -> Answer:
    try:
        match request:
            case SampleDevice(device, child_pids, former_pids):
                return MemoryRead(reader.sample(device, child_pids, former_pids))
            case ReadDevice(device, child_pids):
                return DeviceRead(reader.read(device, child_pids))
            case ListDevices():
                return DevicesFound(reader.devices())
    except VendorAbsentError as exc:
        return Failed(str(exc), is_absent=True)
    except TelemetryError as exc:
        return Failed(str(exc))
    except Exception as exc:  # noqa: BLE001 - bindings fail in ways that they do not declare
        reason = f"{type(exc).__name__}: {exc}"
        return Failed(f"the {reader.vendor} bindings failed unexpectedly ({reason})")


def _send(message: bytes) -> None:
    while message:
        message = message[os.write(_SOCKET, message) :]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
