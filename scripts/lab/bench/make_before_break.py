"""How long anybody waits for a switch where the device carries the old server and the new one."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from statistics import median
from typing import Any

from lab.bench.report import Figure, compare
from lab.bench.steady import Tally, steady
from lab.harness.command import LabError, say
from lab.harness.servers import Controller
from lab.harness.setting import CHAT_MODEL, CLIENTS, Setting, with_changes
from lab.harness.texts import short_texts

NAME = "make_before_break"

OTHER_PROFILE = "generation-other"
PROFILES = (OTHER_PROFILE, "generation")
CONFIGURATION: Mapping[str, Mapping[str, Any]] = {
    "models.yaml": {"default_model": CHAT_MODEL},
    "supervisor.yaml": {
        "server": {"log_format": "json"},
        "devices": {
            "gpu0": {"exclusive": False},
            "host": {"exclusive": False, "budget_bytes": "4GiB"},
        },
    },
    f"{OTHER_PROFILE}.yaml": {"extends": "generation", "mode": "generation", "ctx_size": 2048},
}
"""Room for both. The other profile differs in something, or there would be nothing to switch."""

REQUESTS_PER_S = 20.0
TOKENS_PER_ANSWER = 4
AROUND_S = 1.0
"""How long the clients send before a switch and after it."""

UNDISTURBED, SWITCHING = "bench-undisturbed", "bench-switching"
MS = 1000


def measure(setting: Setting) -> Figure:
    """Switch a model to another profile and back while clients send at a fixed rate.

    Waits are those that the controller itself logs with each request; the direct column has the
    longest one of the same clients while nothing is switched.
    """
    reports = []
    changed = with_changes(setting, NAME, CONFIGURATION)
    with Controller(changed) as controller:
        controller.load(CHAT_MODEL)
        with _clients(controller, UNDISTURBED) as undisturbed:
            time.sleep(2 * AROUND_S * setting.rounds)
        with _clients(controller, SWITCHING) as switching:
            for profile in PROFILES * setting.rounds:
                time.sleep(AROUND_S)
                reports.append(controller.switch_to(CHAT_MODEL, profile))
                controller.wait_until_alone()
                time.sleep(AROUND_S)
    say(f"  {NAME}: {len(reports)} switches, {switching.requests} requests")
    waits_s = {name: list(_waits_s(controller, name)) for name in (UNDISTURBED, SWITCHING)}
    return Figure(
        name=NAME,
        rows=(
            compare(
                "longest wait of a request",
                "ms",
                direct=[max(waits_s[UNDISTURBED]) * MS],
                controller=[max(waits_s[SWITCHING]) * MS],
                at_most=50,
            ),
            compare(
                f"failures of {switching.requests} requests",
                "",
                direct=[len(undisturbed.failures)],
                controller=[len(switching.failures)],
                at_most=0,
            ),
        ),
        notes=(_note(reports, undisturbed, switching), *switching.failures),
        samples={
            "waits_s": waits_s,
            "switch_phases_s": [report["seconds"] for report in reports],
            "latencies_s": {
                UNDISTURBED: undisturbed.latencies_s,
                SWITCHING: switching.latencies_s,
            },
            "failures": switching.failures,
        },
    )


@contextmanager
def _clients(controller: Controller, request_id: str) -> Iterator[Tally]:
    texts = cycle(short_texts(64, min_words=3, max_words=20))

    def chat() -> None:
        content = {
            "model": CHAT_MODEL,
            "messages": [{"role": "user", "content": next(texts)}],
            "max_tokens": TOKENS_PER_ANSWER,
        }
        headers = {"X-Request-ID": request_id}
        body = b"".join(controller.stream("/v1/chat/completions", content, headers))
        if b'"finish_reason":"length"' not in body:
            raise LabError(f"no whole answer in {body[:80]!r}")

    with steady(chat, clients=CLIENTS, requests_per_s=REQUESTS_PER_S) as tally:
        yield tally


def _waits_s(controller: Controller, request_id: str) -> Iterator[float]:
    waits = [
        line["waited_s"]
        for line in controller.logged("request.done")
        if line["request_id"] == request_id
    ]
    if not waits:
        raise LabError("the controller's log has no closing line of the clients' requests")
    yield from waits


def _note(reports: list[dict[str, Any]], undisturbed: Tally, switching: Tally) -> str:
    totals_s = [report["seconds"]["total"] for report in reports]
    return (
        f"{len(reports)} switches of {median(totals_s):.2f} s each; the clients' own longest "
        f"latency is {max(switching.latencies_s) * MS:.0f} ms, and "
        f"{max(undisturbed.latencies_s) * MS:.0f} ms undisturbed: the start of the other server "
        "takes processors, too"
    )
