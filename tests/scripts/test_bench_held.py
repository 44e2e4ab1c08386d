"""The figure of the held requests: a crowd waits for a switch, and each answer is looked at."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
REQUESTS = 40


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, llama_server_bin: Path) -> Callable[[str], Any]:
    """Imports a module of the benchmark by its name."""
    monkeypatch.setenv("LLAMA_SERVER_BIN", str(llama_server_bin))
    monkeypatch.syspath_prepend(SCRIPTS)
    return lambda name: import_module(f"bench_runner.{name}")


@pytest.fixture
def setting(
    bench: Callable[[str], Any], tmp_path: Path, profiles_dir: Path, models_dir: Path
) -> Any:
    return bench("setting").Setting(
        profiles=profiles_dir,
        models=models_dir,
        work_dir=tmp_path,
        engine="llama-server",
        seconds=1.0,
        rounds=1,
        starts=1,
        switches=2,
    )


def test_all_requests_wait_for_one_switch_and_each_gets_the_answer_to_its_own_text(
    bench: Callable[[str], Any], setting: Any
) -> None:
    figure = bench("held").measure(setting, REQUESTS)

    failed, memory, health = figure.rows
    assert (failed.quantity, failed.controller) == (f"{REQUESTS} requests, failed", 0)
    assert figure.samples["held"]["answered"] == REQUESTS
    assert figure.samples["live"]["answered"] == REQUESTS
    assert memory.target.bound == 20
    assert 0 < health.controller < 1000


def test_answer_to_another_text_is_a_failure(bench: Callable[[str], Any], setting: Any) -> None:
    held, servers = bench("held"), bench("servers")
    with servers.Controller(setting) as controller:
        controller.load("minilm")
        right = held._right_vectors(controller)
        swapped = dict(zip(right, reversed(right.values()), strict=True))
        answered, failures = held.send_crowd(controller.endpoint, swapped, REQUESTS)

    assert (answered, sum(failures.values())) == (0, REQUESTS)
    assert "of another text" in next(iter(failures))
