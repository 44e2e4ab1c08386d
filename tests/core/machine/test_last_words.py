"""The reason for a failed start is picked out of what the server wrote last."""

import pytest

from supervisor.core.machine.last_words import reason_in


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            (
                "0.00.007.945 I srv    load_model: loading model '/m.gguf'",
                (
                    "0.00.008.996 E llama_model_load: error loading model: unknown model "
                    "architecture: 'lemma'"
                ),
                "0.00.009.679 E cmn  common_init_: failed to load model '/m.gguf'",
                "0.00.010.183 E srv  llama_server: exiting due to model loading error",
            ),
            "unknown model architecture: 'lemma'",
        ),
        (
            (
                "0.00.002.550 E srv         start: couldn't bind HTTP server socket",
                "0.00.002.624 E srv  llama_server: exiting due to HTTP server error",
            ),
            "couldn't bind HTTP server socket",
        ),
        (("usage: x", "error: invalid argument: --no-such"), "error: invalid argument: --no-such"),
        (
            ("Traceback:", "ValueError: first", "During …", "torch.OutOfMemoryError: 20 GiB"),
            "torch.OutOfMemoryError: 20 GiB",
        ),
        (
            ("ValueError: first", "(ended by the controller: its socket is gone (/run/b.sock))"),
            "its socket is gone (/run/b.sock)",
        ),
        (("all is well", "0 errors so far"), None),
        ((), None),
    ],
)
def test_reason_is_the_one_that_the_others_follow_from(
    lines: tuple[str, ...], reason: str | None
) -> None:
    assert reason_in(lines) == reason
