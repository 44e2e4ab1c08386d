"""A server with llama-server's command line that takes memory of the simulated GPU.

How much, where, and what becomes of it at its death is said by the variables of `holding.py`, and
by some more:

    VRAM_LEFT_BYTES       what a process of its session, but not of its group, takes besides;
                          that one ends only when it is killed
    VRAM_KEPT_BYTES       what it keeps of its device when it is told to sleep, as vLLM is; the rest
                          is free until it is woken, and it holds PARKED_HOST_BYTES instead
    VRAM_SLEEP_FAULT      what goes wrong: `sleep` or `wake` is answered with 500
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
PARKED_HOST_BYTES = 64 * 1024 * 1024


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


class Sleeper:
    """The memory of this process, which it gives up and takes back when it is told to."""

    def __init__(self, gpu: SimulatedDriver | None, devices: list[int]) -> None:
        self._gpu = gpu
        self._held = {d: gpu.held_bytes(os.getpid(), d) for d in devices} if gpu else {}
        self._on_host: bytearray | None = None

    def answer(self, method: str, path: str) -> tuple[int, str]:
        """Do what a request says; gives the status and body of its answer."""
        fault = os.environ.get("VRAM_SLEEP_FAULT")
        match method, path:
            case "POST", "/sleep?level=1":
                if fault == "sleep":
                    return 500, "cannot sleep"
                self._resize(int(os.environ.get("VRAM_KEPT_BYTES", "0")))
                self._on_host = bytearray(b"x") * PARKED_HOST_BYTES
            case "POST", "/wake_up":
                if fault == "wake":
                    return 500, "cannot wake"
                self._resize(None)
                self._on_host = None
            case "GET", "/is_sleeping":
                return 200, f'{{"is_sleeping": {"false" if self._on_host is None else "true"}}}'
        return 200, "{}"

    def _resize(self, size_bytes: int | None) -> None:
        for device, held_bytes in self._held.items():
            if self._gpu is not None:
                size = held_bytes if size_bytes is None else size_bytes
                self._gpu.resize(os.getpid(), size, device)


def serve(socket_path: str, sleeper: Sleeper) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(socket_path)
    listener.listen()
    while True:
        client, _ = listener.accept()
        with client:
            if asked := client.recv(65536):
                method, path, _ = asked.split(b"\r\n")[0].decode().split(" ")
                status, body = sleeper.answer(method, path)
                head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close"
                client.sendall(f"{head}\r\n\r\n{body}".encode())


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
        serve(arguments[arguments.index("--host") + 1], Sleeper(gpu, devices))


if __name__ == "__main__":
    main(sys.argv[1:])
