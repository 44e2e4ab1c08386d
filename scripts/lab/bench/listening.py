"""How soon the controller listens, and how much memory it holds."""

from concurrent.futures import ThreadPoolExecutor

from lab.bench.report import Figure, compare
from lab.harness.command import say
from lab.harness.servers import Controller, Endpoint, Server
from lab.harness.setting import CLIENTS, EMBEDDING_MODEL, Setting
from lab.harness.texts import short_texts

NAME = "listening"

REQUESTS_BEFORE_MEMORY = 200
MB = 1_000_000


def measure(setting: Setting) -> Figure:
    """Start the controller and the bare default model's server in turn.

    The controller listens before it loads its default model; the bare server answers 200 only
    when its model is loaded, so that the direct column stands there for orientation.
    """
    listening_s, ready_s = [], []
    for _ in range(setting.starts):
        with Controller(setting) as controller:
            listening_s.append(controller.start_s)
            controller.wait_until_settled()
            default = controller.child_command()
        with default.start(Endpoint.on_free_port(), setting) as bare:
            ready_s.append(bare.start_s)
    say(f"  listening: {len(listening_s)} starts")
    resident = [_resident_bytes(setting) for _ in range(setting.rounds)]
    return Figure(
        name=NAME,
        rows=(
            compare(
                "start until /health answers",
                "s",
                direct=ready_s,
                controller=listening_s,
                at_most=1.0,
            ),
            compare(
                f"resident after a switch and {REQUESTS_BEFORE_MEMORY} requests",
                "MB",
                direct=[bare / MB for bare, _ in resident],
                controller=[supervised / MB for _, supervised in resident],
                at_most=80,
            ),
        ),
        samples={
            "listening_s": listening_s,
            "bare_ready_s": ready_s,
            "resident_bytes": [supervised for _, supervised in resident],
            "bare_resident_bytes": [bare for bare, _ in resident],
        },
    )


def _resident_bytes(setting: Setting) -> tuple[int, int]:
    """Return what the bare server and the controller hold after the same requests."""
    with Controller(setting) as controller:
        command = controller.load(EMBEDDING_MODEL)
        supervised = _resident_after_requests(controller)
    with command.start(Endpoint.on_free_port(), setting) as bare:
        return _resident_after_requests(bare), supervised


def _resident_after_requests(server: Server) -> int:
    def embed(text: str) -> None:
        server.call("POST", "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": text})

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(embed, short_texts(REQUESTS_BEFORE_MEMORY, min_words=3, max_words=40)))
    return server.resident_bytes()
