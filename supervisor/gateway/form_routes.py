"""The table of forms: paths on which callers ask for embeddings, each in its own way.

Some of these paths are llama-server's, too, with another body: there the body decides.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import msgspec
import structlog

from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer
from supervisor.gateway.body_reading import BOM
from supervisor.gateway.call import Call
from supervisor.gateway.error_responses import error_answer
from supervisor.gateway.forms.inputs import is_given
from supervisor.gateway.forms.older import OlderForm
from supervisor.gateway.forms.ollama import OllamaForm, ollama_error
from supervisor.gateway.forms.openai import OpenAIForm
from supervisor.gateway.forms.tei import TeiForm, tei_error

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class FormRoute:
    """A POST in one form: who answers it, and how errors look to its callers.

    `told_by`: the field of the body by which the form is told from the others of its path; empty
    where the path has one form only. `handler` is a method of `owner`; None: it is relayed.
    """

    path: str
    purpose: str
    told_by: str = ""
    owner: type = object
    handler: Callable[[Any, Call], Awaitable[Answer]] | None = None
    error_answer: Callable[[RequestRefused], Answer] = error_answer

    async def answer(self, owner: object, call: Call) -> Answer:
        """Answer a call in this form, whatever comes of it; `owner` has the handler."""
        assert self.handler is not None  # noqa: S101 - else it is relayed
        try:
            return await self.handler(owner, call)
        except RequestRefused as error:
            return self.error_answer(error)
        except Exception:
            log.exception("request.failed", path=self.path)
            failure = RequestRefused("internal_error", "the controller failed; its log says why")
            return self.error_answer(failure)


FORM_ROUTES: tuple[FormRoute, ...] = (
    FormRoute(
        path="/v1/embeddings",
        purpose="Embeddings in OpenAI's form.",
        owner=OpenAIForm,
        handler=OpenAIForm.embeddings,
    ),
    FormRoute(
        path="/v1/embeddings/query",
        purpose="The same, each text behind the model's prompt for queries.",
        owner=OpenAIForm,
        handler=OpenAIForm.query_embeddings,
    ),
    FormRoute(
        path="/v1/embeddings/document",
        purpose="The same, each text behind the model's prompt for documents.",
        owner=OpenAIForm,
        handler=OpenAIForm.document_embeddings,
    ),
    FormRoute(
        path="/embed",
        purpose="Embeddings in the form of text-embeddings-inference.",
        told_by="inputs",
        owner=TeiForm,
        handler=TeiForm.embed,
        error_answer=tei_error,
    ),
    FormRoute(
        path="/embed",
        purpose="One text in the older form, stored in `collection` unless `store` is false.",
        told_by="text",
        owner=OlderForm,
        handler=OlderForm.embed,
    ),
    FormRoute(
        path="/",
        purpose="As `/embed`; `/similarity` where `inputs` is an object, `/rerank` with `texts`.",
        owner=TeiForm,
        handler=TeiForm.own_task,
        error_answer=tei_error,
    ),
    FormRoute(
        path="/similarity",
        purpose="The cosine of a sentence with each of others.",
        owner=TeiForm,
        handler=TeiForm.similarity,
        error_answer=tei_error,
    ),
    FormRoute(
        path="/rerank",
        purpose="Texts by how well they answer a query, in text-embeddings-inference's form.",
        told_by="texts",
        owner=TeiForm,
        handler=TeiForm.rerank,
        error_answer=tei_error,
    ),
    FormRoute(
        path="/rerank",
        purpose="The same in the form of the model's server, which answers it.",
        told_by="documents",
    ),
    FormRoute(
        path="/tokenize",
        purpose="The tokens of texts, in text-embeddings-inference's form.",
        told_by="inputs",
        owner=TeiForm,
        handler=TeiForm.tokenize,
        error_answer=tei_error,
    ),
    FormRoute(
        path="/tokenize",
        purpose="The same in the form of the model's server, which answers it.",
        told_by="content",
    ),
    FormRoute(
        path="/api/embed",
        purpose="Embeddings in Ollama's form.",
        owner=OllamaForm,
        handler=OllamaForm.embed,
        error_answer=ollama_error,
    ),
)
"""Other methods than POST on these paths are relayed, as those of any path that is not ours.

A path's first form is that of the errors of a body that does not tell which it is in: its clients
know no other, and read a text at `error`."""


class _TellingFields(msgspec.Struct, frozen=True):
    """The fields by which forms are told apart."""

    inputs: msgspec.Raw = msgspec.Raw()
    text: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()
    texts: msgspec.Raw = msgspec.Raw()
    documents: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_TellingFields).decode


def forms_at(method: str, request_target: str) -> tuple[FormRoute, ...]:
    """Return the forms that a request may be in; none for what is not asked in any."""
    if method != "POST":
        return ()
    raw_path = request_target.partition("?")[0]
    return _BY_PATH.get(unquote(raw_path) if "%" in raw_path else raw_path, ())


def form_of(forms: tuple[FormRoute, ...], content: bytes) -> FormRoute:
    """Return the form that a body is in. Raises RequestRefused `form_unclear`."""
    if not forms[0].told_by:
        return forms[0]
    try:
        fields = _decode(content.removeprefix(BOM))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(
            "form_unclear", f"the body does not tell its form, for it cannot be read: {error}"
        ) from error
    told = [form for form in forms if is_given(getattr(fields, form.told_by))]
    if len(told) == 1:
        return told[0]
    known = ", ".join(f"`{form.told_by}`" for form in forms)
    given = " and ".join(f"`{form.told_by}`" for form in told) or "none of them"
    raise RequestRefused(
        "form_unclear",
        f"{forms[0].path} is asked in several forms, which the body tells apart by {known}; it has "
        f"{given}",
    )


def _by_path() -> Mapping[str, tuple[FormRoute, ...]]:
    paths = dict.fromkeys(form.path for form in FORM_ROUTES)
    return {path: tuple(f for f in FORM_ROUTES if f.path == path) for path in paths}


_BY_PATH = _by_path()
