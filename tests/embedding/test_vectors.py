"""Vectors as bytes, held against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from supervisor.embedding import vectors

numbers = st.floats(-100, 100, width=32)
columns = st.integers(1, 12).flatmap(
    lambda length: st.lists(st.lists(numbers, min_size=length, max_size=length), min_size=1)
)


def read(vector: bytes) -> NDArray[np.float32]:
    return np.frombuffer(vector, "<f4")


@given(columns, st.data())
def test_windows_are_joined_as_numpy_does(windows: list[list[float]], data: st.DataObject) -> None:
    weights = [data.draw(st.integers(1, 512)) for _ in windows]
    joint = vectors.joined([vectors.pack(window) for window in windows], weights)
    expected = np.average(np.array(windows, np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(read(joint), expected, rtol=1e-6, atol=1e-6)


@given(st.lists(numbers, min_size=1, max_size=12))
def test_a_normalised_vector_has_length_1_and_its_direction(values: list[float]) -> None:
    vector = vectors.pack(values)
    norm = float(np.linalg.norm(read(vector).astype(np.float64)))
    result = read(vectors.normalized(vector))
    np.testing.assert_allclose(result * norm, read(vector), rtol=1e-5, atol=1e-30)
    if norm:
        assert np.linalg.norm(result) == pytest.approx(1, abs=1e-6)


def test_a_vector_is_written_as_it_is_read() -> None:
    vector = vectors.pack([1.5, -2.0, 0.25])
    assert vector == np.array([1.5, -2.0, 0.25], "<f4").tobytes()
    assert vectors.unpack(vector) == [1.5, -2.0, 0.25]
    assert vectors.from_base64(vectors.to_base64(vector)) == vector
    assert (vectors.length(vector), vectors.cut(vector, 2)) == (3, vectors.pack([1.5, -2.0]))


@pytest.mark.parametrize("text", ["", "AAA=", "not base64"])
def test_what_is_no_vector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"vector|base64|padding|data"):
        vectors.from_base64(text)


def test_the_cosine_is_that_of_the_angle() -> None:
    right, up, both = (vectors.pack(each) for each in ([2, 0], [0, 3], [1, 1]))
    assert vectors.cosine(right, up) == 0
    assert vectors.cosine(right, both) == pytest.approx(2**-0.5)
    assert vectors.cosine(right, vectors.pack([0, 0])) == 0
