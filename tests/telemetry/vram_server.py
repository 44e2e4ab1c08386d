"""A server with llama-server's command line that takes memory of the simulated GPU.

How much, where, and what becomes of it at its death is said by the variables of `holding.py`, and
by one more:

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
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from lab.drivers.holding import take_memory
from lab.drivers.shared import SimulatedDriver

LONGEST_LIFE_S = 60
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def leave_behind(gpu: SimulatedDriver, left_bytes: int, device: int) -> None:
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
        gpu, devices = take_memory(arguments)
        left_bytes = int(os.environ.get("VRAM_LEFT_BYTES", "0"))
        if gpu and left_bytes:
            leave_behind(gpu, left_bytes, devices[0])
        serve(arguments[arguments.index("--host") + 1])


if __name__ == "__main__":
    main(sys.argv[1:])
