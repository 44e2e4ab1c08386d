"""A server with llama-server's command line that takes memory of the simulated GPU.

It takes it on the devices that CUDA_VISIBLE_DEVICES names, in the shares of `--tensor-split`, and
none where that is `-1`. Its environment says how much, and what becomes of that at its death:

    VRAM_BYTES            what it takes
    VRAM_RELEASE_AFTER_S  seconds from its death until all is given back (`inf`: never)
    VRAM_RELEASE_STEPS    in so many equal steps
    VRAM_LISTED_AS        the process id that the driver lists it under, if not its own
    VRAM_LEFT_BYTES       what a process of its session, but not of its group, takes besides;
                          that one ends only when it is killed
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.telemetry.simulated_gpu import SimulatedGpu

LONGEST_LIFE_S = 60
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def take_memory(split: str) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not visible or visible == "-1":
        return
    gpu = SimulatedGpu.attached()
    known = [each.uuid.decode() for each in gpu.devices]
    devices = [known.index(uuid) for uuid in visible.split(",")]
    shares = [float(share) for share in split.split(",")]
    for device, share in zip(devices, shares, strict=True):
        gpu.allocate(
            os.getpid(),
            int(int(os.environ.get("VRAM_BYTES", "0")) * share / sum(shares)),
            device,
            release_after_s=float(os.environ.get("VRAM_RELEASE_AFTER_S", "0")),
            release_steps=int(os.environ.get("VRAM_RELEASE_STEPS", "1")),
            listed_as=int(os.environ.get("VRAM_LISTED_AS", "0")),
        )
    left_bytes = int(os.environ.get("VRAM_LEFT_BYTES", "0"))
    if left_bytes:
        leave_behind(gpu, left_bytes, devices[0])


def leave_behind(gpu: SimulatedGpu, left_bytes: int, device: int) -> None:
    """Start a process that no signal to our group ends."""
    if pid := os.fork():
        gpu.allocate(pid, left_bytes, device)
        return
    os.setpgid(0, 0)
    os.closerange(0, 3)
    signal.alarm(LONGEST_LIFE_S)
    while True:
        time.sleep(1)


def serve(socket_path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(socket_path)
    listener.listen()
    while True:
        client, _ = listener.accept()
        with client:
            if client.recv(65536):
                client.sendall(_ANSWER)


def main(arguments: list[str]) -> None:
    if "--version" in arguments:
        print("version: vram")  # noqa: T201 - what is printed is the answer
    elif "--help" in arguments:
        from tests.gateway.faulty_server import FLAGS  # noqa: PLC0415 - slow, for starts need none

        print("sockets end in .sock", *FLAGS, sep="\n")  # noqa: T201 - the same
    else:
        has_split = "--tensor-split" in arguments
        take_memory(arguments[arguments.index("--tensor-split") + 1] if has_split else "1")
        serve(arguments[arguments.index("--host") + 1])


if __name__ == "__main__":
    main(sys.argv[1:])
