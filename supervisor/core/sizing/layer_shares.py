"""Which layers each of several GPUs takes, as llama.cpp divides them."""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate


def layers_of_part(on_gpus: range, tensor_split: Sequence[float], part: int) -> range:
    """Return which of the layers on GPUs the one takes that stands at a place in `tensor_split`.

    Without a split all are taken. It is computed in single precision, as llama.cpp does. Source:
    get_layer_buft_list() in load_tensors().
    """
    if not tensor_split:
        return on_gpus
    shares = map(_single, tensor_split)
    sums = tuple(accumulate(shares, lambda all_before, one: _single(all_before + one)))
    ends = [_single(each / sums[-1]) for each in sums]
    parts = [bisect_right(ends, _single(n / len(on_gpus))) for n in range(len(on_gpus))]
    return on_gpus[bisect_left(parts, part) : bisect_right(parts, part)]


def _single(value: float) -> float:
    """Round to single precision."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
