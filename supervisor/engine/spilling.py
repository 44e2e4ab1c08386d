"""What is small enough for a twin on the host, while its model is not live."""

MAX_TEXTS = 8
"""More is no longer a question that somebody waits for, but work, which the device does better."""

MAX_TOKENS = 512
"""Of all texts together: a question and some passages, or one chunk of a document. A large model
(E5-large) computes that in one to two seconds on two cores, and other callers wait behind it."""

BYTES_PER_TOKEN = 4
"""Of a body whose tokens nobody counts before it is relayed: less than a token takes in English."""


def is_small(texts: int, tokens: int) -> bool:
    """Whether texts of so many tokens together are."""
    return texts <= MAX_TEXTS and tokens <= MAX_TOKENS


def is_small_body(size_bytes: int) -> bool:
    """Whether the body of a request that is relayed is."""
    return size_bytes <= MAX_TOKENS * BYTES_PER_TOKEN
