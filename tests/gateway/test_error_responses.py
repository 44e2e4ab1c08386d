"""Every refusal says whether the same request can succeed later, and when to come back."""

import ast
from collections.abc import Iterator

import pytest

from supervisor.errors import RequestRefused
from supervisor.gateway.error_responses import STATUS_BY_CODE, error_answer
from tests.conftest import ROOT

PASS_BY_THEMSELVES = {
    *("backend_unreachable", "bodies_full", "body_timeout", "head_timeout", "hold_queue_full"),
    *("hold_timeout", "queue_full", "queue_unreachable", "shutting_down"),
}


@pytest.mark.parametrize("code", STATUS_BY_CODE)
def test_only_what_passes_by_itself_invites_to_try_again(code: str) -> None:
    headers = dict(error_answer(RequestRefused(code, "why")).headers)

    helps = code in PASS_BY_THEMSELVES
    assert headers[b"x-should-retry"] == (b"true" if helps else b"false")
    assert (b"Retry-After" in headers) is helps


@pytest.mark.parametrize("code", ["backend_down", "switch_failed"])
def test_what_is_tried_again_says_when(code: str) -> None:
    refused = RequestRefused(code, "why", {"retry_after_s": 7})
    headers = dict(error_answer(refused).headers)

    assert (headers[b"x-should-retry"], headers[b"Retry-After"]) == (b"true", b"7")


def codes_given() -> Iterator[str]:
    """Yield the code of each refusal that the product's source writes as a word."""
    for path in (ROOT / "supervisor").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and hasattr(node.func, "id") else ""
            if name in {"RequestRefused", "Refusal"} and isinstance(node, ast.Call):
                named = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                for given in (*node.args[:1], *named):
                    if isinstance(given, ast.Constant):
                        yield str(given.value)


def test_every_refusal_has_its_status() -> None:
    given = {*codes_given()}
    assert {"embedding_queue_full", "extra_missing", "hold_timeout"} <= given
    assert given <= STATUS_BY_CODE.keys()
