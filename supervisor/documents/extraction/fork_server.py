"""The process that reads documents: it forks a child for each, which ends with its answer.

A child that a broken or hostile file has end, hang or take too much memory harms nobody else; and
because the libraries and the tokenizer are in memory before it is forked, a child costs
milliseconds. Tasks come on the socket that is the standard input, each with two descriptors.
"""

import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from supervisor.documents.extraction.confinement import bound_process, leave_network
from supervisor.documents.extraction.messages import Outcome, Task, Unread
from supervisor.documents.extraction.reading import read_document
from supervisor.documents.splitting import Splitter
from supervisor.documents.values import Division
from supervisor.own_process import end_with_parent

_SOCKET = 0
_MAX_TASK_BYTES = 64 * 1024
_KEPT_SPLITTERS = 4

_decode = msgspec.msgpack.Decoder(Task).decode
_encode = msgspec.msgpack.Encoder().encode


def serve(tasks: socket.socket) -> None:
    """Fork a child for each task until the controller closes the socket."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    splitters: dict[Division, Splitter] = {}
    server_pid = os.getpid()
    while True:
        content, descriptors, _, _ = socket.recv_fds(tasks, _MAX_TASK_BYTES, 2)
        if not content:
            return
        task = _decode(content)
        document, answer = descriptors
        problem = _prepare(splitters, task.division)
        if os.fork() == 0:
            tasks.close()
            status = 1
            with suppress(Exception):
                end_with_parent(server_pid)
                _answer(document, answer, task, problem or splitters[task.division])
                status = 0
            os._exit(status)
        os.close(document)
        os.close(answer)


def _prepare(splitters: dict[Division, Splitter], division: Division) -> Unread | None:
    """Read a tokenizer where it is not known yet: the children have it, too."""
    if division not in splitters:
        try:
            splitters[division] = Splitter(division)
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            return Unread(f"{division.tokenizer}, the model's tokenizer, cannot be used: {error}")
        if len(splitters) > _KEPT_SPLITTERS:
            del splitters[next(iter(splitters))]
    return None


def _answer(document: int, answer: int, task: Task, splitter: Splitter | Unread) -> None:
    limits = task.limits
    used_bytes = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    bound_process(limits.timeout_s, used_bytes + limits.memory_bytes)
    outcome: Outcome
    if isinstance(splitter, Unread):
        outcome = splitter
    else:
        try:
            outcome = read_document(f"/proc/self/fd/{document}", task, splitter)
        except MemoryError:
            outcome = Unread(
                f"it takes more than {limits.memory_bytes} bytes of memory to read "
                "(documents.memory_bytes)"
            )
    with socket.socket(fileno=answer) as connection:
        connection.sendall(_encode(outcome))


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    reason = leave_network()
    # A controller that ends meanwhile closes the socket before it has read what is said here.
    with suppress(ConnectionError), socket.socket(fileno=_SOCKET) as connection:
        connection.sendall(_encode(reason))
        serve(connection)
