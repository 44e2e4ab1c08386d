"""What is kept of the tokens that servers told."""

from hypothesis import given
from hypothesis import strategies as st

from supervisor.embedding.server_tokenizer import KeptTokens

texts = st.lists(st.text(max_size=40), max_size=60)


def test_the_texts_that_were_not_asked_about_for_longest_go() -> None:
    kept = KeptTokens(room=30)  # each of these texts weighs 10
    for number, text in enumerate(("a", "b", "c")):
        kept.keep("r", text, (number, number))
    assert kept.take("r", "a") == (0, 0)
    kept.keep("r", "d", (3, 3))
    assert kept.take("r", "b") is None
    assert [kept.take("r", text) for text in "acd"] == [(0, 0), (2, 2), (3, 3)]
    assert kept.take("another", "a") is None


@given(texts, st.integers(1, 200))
def test_however_often_a_text_is_kept_the_room_is_not_exceeded(asked: list[str], room: int) -> None:
    kept = KeptTokens(room=room)
    for text in asked:
        kept.keep("r", text, (1,) * len(text))
    found = [text for text in set(asked) if kept.take("r", text) is not None]
    assert sum(len(text) // 16 + len(text) + 8 for text in found) <= room
