"""Requests that are embedded together get what each would have got alone."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.machine.values import Mode, Target
from supervisor.embedding import together
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.together import embed_together
from supervisor.embedding.values import TOO_LONG, EmbeddingRequest, Embeddings, too_long
from supervisor.errors import RequestRefused

TARGET = Target(model="minilm", mode=Mode.EMBEDDING, profile="embedding", device="host")


class Lengths(EmbeddingService):
    """Makes of each text its length; one that begins with `x` is at fault."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        self.asked.append(len(request.inputs))
        faults = [n for n, text in enumerate(request.inputs) if str(text).startswith("x")]
        if faults:
            error = too_long(faults[0], "it begins with x")
            raise RequestRefused(error.code, error.message, error.details | {TOO_LONG: faults})
        return Embeddings(
            vectors=[b"%d" % len(text) for text in request.inputs],
            tokens=[len(text) for text in request.inputs],
            truncated=0,
            tokenization_s=0.0,
            queue_s=0.0,
            inference_s=0.0,
        )


async def outcomes_of(
    service: Lengths, requests: Sequence[EmbeddingRequest]
) -> dict[int, Embeddings | RequestRefused]:
    made = [each async for some in embed_together(service, requests) for each in some]
    assert len(made) == len(dict(made))
    return dict(made)


def request(*texts: str, dimensions: int | None = None) -> EmbeddingRequest:
    return EmbeddingRequest(target=TARGET, inputs=texts, dimensions=dimensions)


TEXTS = st.lists(st.sampled_from(["a", "bb", "x", "xx", "ccc" * 20]), min_size=1, max_size=6)


@given(st.lists(st.tuples(TEXTS, st.sampled_from([None, 64])), max_size=12))
async def test_each_gets_its_own(asked: list[tuple[list[str], int | None]]) -> None:
    requests = [request(*texts, dimensions=dimensions) for texts, dimensions in asked]
    outcomes = await outcomes_of(Lengths(), requests)
    assert outcomes.keys() == set(range(len(requests)))
    for place, (texts, _) in enumerate(asked):
        made = outcomes[place]
        faults = [index for index, text in enumerate(texts) if text.startswith("x")]
        if faults:
            assert isinstance(made, RequestRefused)
            assert made.details["index"] == faults[0]
            assert f"input {faults[0]} " in made.message
        else:
            assert isinstance(made, Embeddings)
            assert made.vectors == [b"%d" % len(text) for text in texts]
            assert made.tokens == [len(text) for text in texts]


async def test_those_that_want_the_same_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "MAX_INPUTS", 5)
    service = Lengths()
    await outcomes_of(service, [request("a", "b"), request("c", dimensions=64), request("d", "e")])
    assert service.asked == [4, 1]
    service = Lengths()
    await outcomes_of(service, [request("a", "b", "c"), request("d", "e", "f"), request("g")])
    assert service.asked == [3, 4]


async def test_texts_are_looked_at_about_twice_however_many_are_too_long() -> None:
    service = Lengths()
    outcomes = await outcomes_of(service, [request("x" if n % 3 else "a") for n in range(256)])
    assert sum(isinstance(each, RequestRefused) for each in outcomes.values()) == 170
    assert sum(service.asked) <= 2 * 256


async def test_long_texts_go_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "MAX_CHARACTERS", 10)
    service = Lengths()
    await outcomes_of(service, [request("a" * 20), request("b" * 6), request("c" * 4)])
    assert service.asked == [1, 2]
