"""Inputs as their model takes them: with its prompt, as its tokens, within its limit."""

from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.configuration import ResolvedModel
from supervisor.config.holder import ConfigurationHolder
from supervisor.embedding.values import EmbeddingRequest, Piece, PreparedInput
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused


class Preparer:
    """Makes of a request's inputs what can be sent to a server."""

    def __init__(
        self,
        *,
        arbiter: Arbiter,
        configuration: ConfigurationHolder,
        targets: Targets,
        engines: Engines,
    ) -> None:
        self._arbiter = arbiter
        self._configuration = configuration
        self._targets = targets
        self._engines = engines

    async def prepare(self, request: EmbeddingRequest) -> tuple[PreparedInput, ...]:
        """Return each input in the pieces that its server is sent.

        May wait for the model's turn, where its server is asked for tokens. Raises RequestRefused:
        `bad_request` for a prompt that the model does not have or token ids that it does not know,
        `input_too_long`, `extra_missing`, and what a lease is refused with.
        """
        prompt = prompt_of(self._targets.resolved(request.target), request.prompt_name)
        return tuple(
            PreparedInput(
                pieces=(
                    Piece(content=prompt + each, tokens=len(each) // 4 + 2)
                    if isinstance(each, str)
                    else Piece(content=each, tokens=len(each)),
                )
            )
            for each in request.inputs
        )


def prompt_of(resolved: ResolvedModel, name: str | None) -> str:
    """Return what precedes each text. Raises RequestRefused for a prompt that the model has not."""
    if name is None:
        return ""
    prompt = resolved.prompts.get(name)
    if prompt is not None:
        return prompt
    known = ", ".join(resolved.prompts) or "none; the operator may write some in models.yaml"
    raise RequestRefused(
        "bad_request",
        f"'{resolved.name}' has no prompt '{name}'; there are: {known}",
        {"prompts": list(resolved.prompts)},
    )
