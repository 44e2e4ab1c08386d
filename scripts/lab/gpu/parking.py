"""Parking: a server's device memory moves to the host, and later back, while the server lives.

NVIDIA's checkpoint API does it from outside the process, in the steps that the product takes where
`switch.cuda_checkpoint` is on (`supervisor/engine/cuda/`). What is found here decides whether that
may be.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from lab.gpu.check import GB, Check, Mark, NotHereError, PartResult
from lab.gpu.configuration import (
    EMBEDDING,
    GENERATION,
    estimate,
    log_of,
    look_at,
    setting_for,
    variants,
)
from lab.gpu.conversation import begun, gone_on, talk
from lab.gpu.cuda_process import call_driver, require_checkpoints
from lab.gpu.log_reading import marks
from lab.harness.command import LabError
from lab.harness.servers import ChildCommand, Controller, Endpoint, Server
from lab.harness.setting import Setting
from supervisor.core.machine.memory import (
    GateState,
    MemoryPolicy,
    MemorySample,
    ReleaseQuestion,
    judge_release,
    pause_before_sample,
)

NAME = "parking"
LIMIT_S = 180.0

MOST_NEW_TOKENS = 128
"""Prompt tokens that may be computed after the return; the question itself has about twenty."""


class Stopwatch:
    """Times the steps, and remembers when each began for the timeline."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.marks: list[Mark] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step."""
        began_at = time.monotonic()
        self.marks.append(Mark(at=began_at, label=name))
        yield
        self.seconds[name] = time.monotonic() - began_at

    def drive(self, action: str, pid: int, library: str) -> None:
        """Let the driver do a step; its time is the call's own, without a process for it."""
        with self.step(action):
            told = call_driver(action, pid, library)
        self.seconds[action] = told.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What the steps work with; `idle` is the device before anything of ours was on it."""

    check: Check
    setting: Setting
    idle: MemorySample


def measure(check: Check) -> PartResult:
    """Park a server in the middle of a conversation, embed, bring it back, and go on."""
    require_checkpoints(check.libcuda)
    setting = setting_for(check, variants("plain", {}))
    part = _Part(check=check, setting=setting, idle=check.watch.sample())
    with Controller(setting) as controller:
        embedding = controller.load(EMBEDDING)
        generation = controller.load(GENERATION)
        controller.call("POST", "/unload")  # which ends when the memory is back
    watch = Stopwatch()
    with ExitStack() as stack:
        with watch.step("start generation"):
            server = stack.enter_context(_start(generation, setting, "generation"))
        figures = _park_and_return(part, watch, server, embedding)
    seconds = watch.seconds
    moved_gb = figures["device_bytes"] / GB
    figures |= {
        "seconds": seconds,
        "checkpoint_gb_per_s": moved_gb / seconds["checkpoint"],
        "restore_gb_per_s": moved_gb / seconds["restore"],
    }
    return PartResult(
        figures=figures,
        sentences=_sentences(figures),
        marks=[*marks(log_of(setting)), *watch.marks],
    )


def _start(command: ChildCommand, setting: Setting, name: str) -> Server:
    return command.start(Endpoint(socket_path=setting.work_dir / f"{name}.sock"), setting)


def _park_and_return(
    part: _Part, watch: Stopwatch, server: Server, embedding: ChildCommand
) -> dict[str, Any]:
    check, setting, idle = part.check, part.setting, part.idle
    conversation = begun()
    with watch.step("first answer"):
        before = talk(server, conversation)
    held = check.watch.sample()
    host_before = _host_use(server)
    with _unparked_at_the_end(check, server, watch):
        for step in ("lock", "checkpoint"):
            watch.drive(step, server.pid, check.libcuda)
        host_parked = _host_use(server)
        gate = _confirm_release(part, watch)
        with ExitStack() as stack:
            with watch.step("start embedding"):
                other = stack.enter_context(_start(embedding, setting, "embedding"))
            with watch.step("embed"):
                other.call("POST", "/v1/embeddings", {"model": EMBEDDING, "input": "in between"})
        gate_back = _wait_for_room(check, watch, idle)
    with watch.step("next answer"):
        after = talk(server, gone_on(conversation, before))
    return {
        "device_bytes": held.used_bytes - idle.used_bytes,
        "host_bytes_before": host_before,
        "host_bytes_parked": host_parked,
        "gate": gate,
        "embedding_gone": gate_back,
        "before": before["timings"],
        "after": after["timings"],
        "came_without_prefill": after["timings"]["prompt_n"] <= MOST_NEW_TOKENS,
    }


@contextmanager
def _unparked_at_the_end(check: Check, server: Server, watch: Stopwatch) -> Iterator[None]:
    """Restore and unlock; after a failure as far as the process's state asks for it.

    A process that stays locked could not end by itself.
    """
    try:
        yield
        for step in ("restore", "unlock"):
            watch.drive(step, server.pid, check.libcuda)
    except BaseException:
        with suppress(LabError, NotHereError):
            state = call_driver("state", server.pid, check.libcuda).state
            if state == "checkpointed":
                state = call_driver("restore", server.pid, check.libcuda).state
            if state == "locked":
                call_driver("unlock", server.pid, check.libcuda)
        raise


def _host_use(server: Server) -> dict[str, int]:
    """Return what the process holds of host memory, and what the machine has left, in bytes."""
    return {
        "resident": server.resident_bytes(),
        "available": psutil.virtual_memory().available,
    }


def _confirm_release(part: _Part, watch: Stopwatch) -> dict[str, Any]:
    """Let the product's gate judge, as it would before the embedding server starts."""
    check, setting, idle = part.check, part.setting, part.idle
    need = estimate(check, look_at(check, setting, EMBEDDING)).total_bytes
    asked_at = time.monotonic()
    free_bytes = idle.free_bytes - MemoryPolicy().margin_bytes - MemoryPolicy().tolerance_bytes
    question = ReleaseQuestion(
        device=check.watch.info.device,
        need_bytes=max(need, free_bytes),  # the whole device: a large one has room anyway
        baseline_used_bytes=idle.used_bytes,
        policy=MemoryPolicy(),
        asked_at=asked_at,
    )
    samples: list[MemorySample] = []
    with watch.step("confirm release"):
        while True:
            time.sleep(pause_before_sample(len(samples)))
            samples.append(check.watch.sample())
            decision = judge_release(question, samples)
            if decision.state is not GateState.WAITING:
                break
    # What is not confirmed is reported, and so is whether the other server starts anyway.
    return {
        "state": decision.state.value,
        "reason": decision.reason,
        "samples": len(samples),
        "left_on_device_bytes": samples[-1].used_bytes - idle.used_bytes,
    }


def _wait_for_room(check: Check, watch: Stopwatch, idle: MemorySample) -> bool:
    """Wait until the embedding server's memory is back, but no longer than the gate would."""
    policy = MemoryPolicy()
    # A parked process may keep something on the device: room is what matters.
    used_bytes = idle.used_bytes + 2 * policy.margin_bytes
    with watch.step("embedding gone"):
        return check.watch.wait_until_used(used_bytes, policy.release_timeout_s)


def _sentences(figures: dict[str, Any]) -> list[str]:
    seconds = figures["seconds"]
    steps = ", ".join(f"{step} {took_s:.3f} s" for step, took_s in seconds.items())
    parked, before = figures["host_bytes_parked"], figures["host_bytes_before"]
    grown_gb = (parked["resident"] - before["resident"]) / GB
    gone_gb = (before["available"] - parked["available"]) / GB
    after, gate = figures["after"], figures["gate"]
    outcome = "without" if figures["came_without_prefill"] else "NOT without"
    return [
        (
            f"{figures['device_bytes'] / GB:.2f} GB parked at {figures['checkpoint_gb_per_s']:.1f} "
            f"GB/s, and brought back at {figures['restore_gb_per_s']:.1f} GB/s: {steps}."
        ),
        (
            f"The parked process held {grown_gb:.2f} GB more of the host's memory, and the host "
            f"had {gone_gb:.2f} GB less available."
        ),
        f"The gate {gate['state']} it, after {gate['samples']} samples: {gate['reason']}.",
        (
            f"The next answer came {outcome} a new prefill: {after['cache_n']} prompt tokens out "
            f"of the cache, {after['prompt_n']} computed."
        ),
    ]
