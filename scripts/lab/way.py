"""Shows a streamed chat's way through the product: each change of file between consecutive calls.

    PYTHONPATH=scripts .venv/bin/python -m lab.way

A controller runs in this process, with a real llama-server behind it; the chat goes through the
fast lane. Only calls of the product's own code count; returns, resumed coroutines and what the
request did not cause do not.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from types import FrameType
from typing import Self

import aiohttp
import uvloop
from aiohttp import web

import supervisor
from lab.harness.command import MODELS, PROFILES, LabError
from lab.harness.setting import CHAT_MODEL
from supervisor.app import build
from supervisor.config.load import load
from supervisor.wiring.ground import Options

BACKGROUND = ("engine/needs/", "engine/servers/output.py", "observability/", "telemetry/")
"""Where calls begin that no request causes: a server's output, samples of memory, a flushed log."""

TRIES = 10
"""The shortest way of several is taken: it is the one in which nothing else happened."""

_PRODUCT = f"{Path(supervisor.__file__).parent}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A call: of which function, in which file; `is_leaf`: it calls nothing of the product."""

    file: str
    function: str
    is_leaf: bool


class Recorder:
    """Notes the calls of this thread while its context lasts; each frame once."""

    def __init__(self) -> None:
        self._frames: dict[FrameType, bool] = {}
        """Whether it is a leaf so far, by each frame in the order of their calls."""

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        is_ours = frame.f_code.co_filename.startswith(_PRODUCT)
        if event != "call" or not is_ours or frame in self._frames:
            return
        callers = [frame]
        while (outer := callers[-1].f_back) is not None:
            callers.append(outer)
        ours = [each for each in callers if each.f_code.co_filename.startswith(_PRODUCT)]
        if not _file(ours[-1]).startswith(BACKGROUND):
            self._frames[frame] = True
            self._frames |= {caller: False for caller in ours[1:] if caller in self._frames}

    def steps(self) -> list[Step]:
        """Return the calls so far, in order."""
        return [
            Step(file=_file(frame), function=_name(frame), is_leaf=is_leaf)
            for frame, is_leaf in self._frames.items()
        ]


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename.removeprefix(_PRODUCT)


def _name(frame: FrameType) -> str:
    return str(getattr(frame.f_code, "co_qualname", frame.f_code.co_name))


def changes_of_file(steps: Sequence[Step]) -> int:
    """Count how often a call stands in another file than the call before it."""
    return sum(before.file != after.file for before, after in pairwise(steps))


async def record_way(profiles: Path, models: Path, data: Path) -> list[Step]:
    """Stream a chat on a warm connection, several times; return the shortest way."""
    configuration = load(profiles, models, os.environ)
    async with build(configuration, Options(data_dir=data, engine="llama-server")) as controller:
        runner = controller.door.runner()
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0]
            url = f"http://{host}:{port}"
            async with aiohttp.ClientSession(url) as client:
                await _switch(client)
            # Another connection: one that has asked for a switch stays at aiohttp's door.
            async with aiohttp.ClientSession(url) as client:
                return await _shortest(client)
        finally:
            await runner.cleanup()


async def _switch(client: aiohttp.ClientSession) -> None:
    order = {"model_name": CHAT_MODEL}
    async with client.post("/switch-backend", json=order) as answer:
        if answer.status != 200:
            raise LabError(f"{CHAT_MODEL} cannot be switched to: {await answer.text()}")


async def _shortest(client: aiohttp.ClientSession) -> list[Step]:
    await _chat(client)
    ways = []
    for _ in range(TRIES):
        with Recorder() as recorder:
            await _chat(client)
        ways.append(recorder.steps())
    return min(ways, key=changes_of_file)


async def _chat(client: aiohttp.ClientSession) -> None:
    """Stream an answer of one token, and let the controller note that it has ended."""
    message = {"role": "user", "content": "Hello"}
    body = {"model": CHAT_MODEL, "messages": [message], "max_tokens": 1, "stream": True}
    async with client.post("/v1/chat/completions", json=body) as answer:
        events = await answer.text()
        if answer.status != 200 or not events.endswith("data: [DONE]\n\n"):
            raise LabError(f"the chat was not streamed to its end: {events}")
    await asyncio.sleep(0)


def main() -> None:
    """Print the way, a line for each file that is come to, and how often it changes."""
    with tempfile.TemporaryDirectory(prefix="way-") as folder:
        steps = uvloop.run(record_way(PROFILES, MODELS, Path(folder) / "data"))
    for file, calls in groupby(steps, key=lambda step: step.file):
        print(file, *(f"    {call.function}{' ·' * call.is_leaf}" for call in calls), sep="\n")
    followed = [step for step in steps if not step.is_leaf]
    print(
        f"{changes_of_file(steps)} changes of file in {len(steps)} calls; "
        f"{changes_of_file(followed)} in the {len(followed)} that call further (all but ·)"
    )


if __name__ == "__main__":
    main()
