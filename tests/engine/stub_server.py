"""A server with faults, for tests: `stub_server.py LISTEN HEALTH`.

LISTEN is a port or the path of a unix socket. HEALTH is the status of `/health`, or several in
turn (`503,503,200`), the last one for good; `hang` is none at all. Each request is told on standard
output.
"""

import os
import socket
import sys
import time


def open_listener(where: str) -> socket.socket:
    if where.isdigit():
        return socket.create_server(("127.0.0.1", int(where)))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(where)
    listener.listen()
    return listener


def main() -> None:
    listener = open_listener(sys.argv[1])
    answers = sys.argv[2].split(",")
    print(f"listening {os.getpid()}", flush=True)  # noqa: T201 - a server's log
    while True:
        client, _ = listener.accept()
        with client:
            if not client.recv(65536):
                continue
            status = answers.pop(0) if len(answers) > 1 else answers[0]
            print(f"answered {status}", flush=True)  # noqa: T201 - a server's log
            if status == "hang":
                time.sleep(600)
            client.sendall(
                f"HTTP/1.1 {status} Word\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )


if __name__ == "__main__":
    main()
