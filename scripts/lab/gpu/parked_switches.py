"""Switches of the product that park the model which leaves, beside the same that stop it."""

from collections.abc import Mapping
from typing import Any

from lab.gpu.check import GB, Check, PartResult, distribution
from lab.gpu.configuration import EMBEDDING, GENERATION, log_of, setting_for, variants, visit
from lab.gpu.conversation import begun, gone_on, talk
from lab.gpu.cuda_process import require_checkpoints
from lab.gpu.log_reading import marks
from lab.harness.servers import Controller

NAME = "parked_switches"
LIMIT_S = 150.0

STOPPED, PARKED = "stopped", "parked"
ROUND_TRIPS = 5


def measure(check: Check) -> PartResult:
    """Leave a conversation for the embedding model and come back to it, so many times each way."""
    require_checkpoints(check.libcuda)
    profiles = variants(STOPPED, {}) | variants(PARKED, {"give_up_memory": "park"})
    setting = setting_for(check, profiles, switch={"cuda_checkpoint": True})
    with Controller(setting) as controller:
        controller.wait_until_settled()
        # Loaded once before either side is measured: the files are in the host's memory for both.
        controller.switch_to(EMBEDDING, f"embedding-{STOPPED}")
        figures = {
            side: _to_and_fro(controller, f"generation-{side}") for side in (STOPPED, PARKED)
        }
        controller.call("POST", "/unload")
    return PartResult(figures=figures, sentences=_sentences(figures), marks=marks(log_of(setting)))


def _to_and_fro(controller: Controller, profile: str) -> dict[str, Any]:
    controller.switch_to(GENERATION, profile)
    messages = begun()
    answer = talk(controller, messages)
    trips: list[dict[str, Any]] = []
    for _ in range(ROUND_TRIPS):
        leaving = controller.switch_to(EMBEDDING, f"embedding-{STOPPED}")
        visit(controller, EMBEDDING)
        kept = _kept(controller)
        returning = controller.switch_to(GENERATION, profile)
        messages = gone_on(messages, answer)
        answer = talk(controller, messages)
        trips.append(
            {
                "leaving": leaving["seconds"],
                "returning": returning["seconds"],
                "was_parked": returning["was_parked"],
                "kept": kept,
                "computed_tokens": answer["timings"]["prompt_n"],
                "cached_tokens": answer["timings"]["cache_n"],
            }
        )
    return {
        "leaving_s": distribution([trip["leaving"]["total"] for trip in trips]),
        "returning_s": distribution([trip["returning"]["total"] for trip in trips]),
        "came_back_parked": sum(trip["was_parked"] for trip in trips),
        "trips": trips,
    }


def _kept(controller: Controller) -> dict[str, Any] | None:
    """Return what the parked server holds of the host and of its device; None: none is parked."""
    parked = [each["parked"] for each in controller.status()["backends"] if each["parked"]]
    return parked[0] if parked else None


def _sentences(figures: Mapping[str, Any]) -> list[str]:
    sentences = []
    for side in (STOPPED, PARKED):
        told = figures[side]
        computed = max(trip["computed_tokens"] for trip in told["trips"])
        sentences.append(
            f"{side}: it leaves in p50 {told['leaving_s']['p50']:.2f} s, at most "
            f"{told['leaving_s']['max']:.2f} s, and is back in p50 "
            f"{told['returning_s']['p50']:.2f} s, at most {told['returning_s']['max']:.2f} s; at "
            f"most {computed} tokens of the conversation were computed anew."
        )
    parked = figures[PARKED]
    kept = next((trip["kept"] for trip in reversed(parked["trips"]) if trip["kept"]), None)
    holds = (
        f"; parked, it held {kept['host_bytes'] / GB:.2f} GB of the host's memory and "
        f"{kept['device_bytes'] / GB:.2f} GB of its device's"
        if kept
        else ""
    )
    sentences.append(f"{parked['came_back_parked']} of {ROUND_TRIPS} came back parked{holds}.")
    return sentences
