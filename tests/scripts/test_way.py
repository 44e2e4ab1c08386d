"""The way of a streamed chat through the product is short, and the script sees all of it."""

import asyncio
from pathlib import Path

import pytest
from lab import way
from lab.way import Recorder, Step, changes_of_file, record_way

from supervisor.core.byte_size import format_bytes
from supervisor.gateway.error_responses import STATUS_BY_CODE

MAX_CHANGES, CHANGES_OF_A_PIECE = 20, 3
"""Where the answer comes in one piece, and for each further one: head and events come apart where
others use the machine."""


async def test_streamed_chat_on_a_warm_connection_changes_file_seldom(
    tmp_path: Path,
    profiles_dir: Path,
    models_dir: Path,
    llama_server_bin: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLAMA_SERVER_BIN", str(llama_server_bin))
    steps = await record_way(profiles_dir, models_dir, tmp_path / "data")
    rooms = {step.file.partition("/")[0] for step in steps}
    assert {"gateway", "arbiter", "core", "engine"} <= rooms
    assert "gateway/lane/crossing.py" in {step.file for step in steps}
    pieces = sum(step.function == "Crossing.take" for step in steps)
    assert changes_of_file(steps) <= MAX_CHANGES + CHANGES_OF_A_PIECE * (pieces - 1)


def test_calls_are_recorded_once_each_and_only_those_of_the_product() -> None:
    with Recorder() as recorder:
        format_bytes(7)
        sorted(STATUS_BY_CODE)
    (step,) = recorder.steps()
    assert step == Step(file="core/byte_size.py", function="format_bytes", is_leaf=True)


async def test_coroutine_that_is_resumed_is_not_another_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nap() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    monkeypatch.setattr(way, "_PRODUCT", f"{Path(__file__).parent}/")
    with Recorder() as recorder:
        await nap()
    names = [step.function.rpartition(".")[2] for step in recorder.steps()]
    assert names.count("nap") == 1


def test_changes_are_counted_between_consecutive_calls() -> None:
    steps = [Step(file=file, function="f", is_leaf=False) for file in "aabba"]
    assert changes_of_file(steps) == 2
    assert changes_of_file([]) == 0
