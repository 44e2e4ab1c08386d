"""The catalogue of models (`models.yaml`)."""

from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from supervisor.config.fields import Settings
from supervisor.config.units import EnvText, Seconds
from supervisor.core.machine.rules import ModelRules
from supervisor.core.machine.values import Mode
from supervisor.core.scheduling.values import Priority


class LongInput(StrEnum):
    """What becomes of an input that is longer than its model takes."""

    ERROR = "error"
    TRUNCATE = "truncate"
    WINDOW = "window"


class ModelEntry(Settings):
    """One model of the catalogue."""

    path: EnvText = Field(
        description="The GGUF file, relative to the models folder, or absolute. May name "
        "variables: `${MODELS}/chat.gguf`, `${MODELS:-/models}/chat.gguf`."
    )
    mmproj: EnvText | None = Field(
        default=None,
        description="The GGUF file of its multimodal projector, relative to the models folder, or "
        "absolute; for generation. Default: none; a scanned model has the projector beside it that "
        "bears its name (`mmproj-NAME.gguf`).",
    )
    type: Mode = Field(
        default=Mode.GENERATION,
        description="`generation` or `embedding` (`embedding: true` is the older spelling).",
    )
    profile: str | None = Field(
        default=None, description="The profile to run with; default: the one named as the type."
    )
    spill: str | None = Field(
        default=None,
        description="A second profile of an embedding model, with `device: cpu`, for a twin on the "
        "host: small interactive requests (up to 8 texts of 512 tokens together) are served by it "
        "while the model itself is not live, instead of waiting or forcing a switch. It makes "
        "nobody leave, and is used once its vectors were compared with the model's own. Default: "
        "none.",
    )
    aliases: tuple[str, ...] = Field(default=(), description="Further names that clients may use.")
    priority: Priority = Field(
        default=Priority.INTERACTIVE,
        description="How urgent requests for it are that say nothing of it (`X-Priority`): "
        "`interactive`, or `batch` for work that may wait for a quiet time.",
    )
    pinned: bool = Field(
        default=False,
        description="Once it is live, it gives way to no other model: what needs its room is "
        "refused. It goes when it is unloaded by its name. It is not loaded because of that: see "
        "`default_model`.",
    )
    idle_unload_s: Seconds | None = Field(
        default=None,
        gt=0,
        description="Seconds without a request after which its server is stopped, so that others "
        "get its memory; its next request brings it back. Default: it stays, which costs nothing "
        "where nobody else uses the memory.",
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        description="How many requests use it at once; the rest wait in its queue. Default: as "
        "many as come, of which its server works on `parallel` at a time.",
    )
    max_input_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest input of an embedding model in tokens, special ones included; "
        "default: what the file and the profile carry. `long_input` says what becomes of others.",
    )
    tokenizer: EnvText | None = Field(
        default=None,
        description="The `tokenizer.json` of an embedding model, relative to the models folder, or "
        "absolute: texts become its tokens, and the server is sent token ids. Needs the extra "
        "`llama-supervisor[embedding]`. Default: the server's own tokenizer, which for WordPiece "
        "models loses most of a Hangul syllable.",
    )
    prompts: dict[str, str] = Field(
        default_factory=dict,
        description='What precedes a text, by its purpose: `{query: "query: ", document: '
        '"passage: "}` for E5. Callers choose one by its name.',
    )
    long_input: LongInput = Field(
        default=LongInput.ERROR,
        description="What becomes of an input above max_input_tokens: `error` answers 400 and "
        "names it, `truncate` cuts it, `window` embeds it in parts, whose mean, weighted by "
        "tokens, is its vector.",
    )
    matryoshka_dimensions: tuple[PositiveInt, ...] = Field(
        default=(),
        description="Lengths that its vectors may be cut to (`dimensions` of a request), for "
        "models that were trained for it. Default: none.",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the profile that differ for this model."
    )

    @model_validator(mode="after")
    def _require_sense(self) -> Self:
        if self.pinned and self.idle_unload_s is not None:
            raise ValueError("pinned stays, and idle_unload_s unloads; leave one of them out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _accept_older_spelling(cls, entry: Any) -> Any:
        if not isinstance(entry, dict) or "embedding" not in entry:
            return entry
        entry = dict(entry)
        flag = entry.pop("embedding")
        if not isinstance(flag, bool):
            raise ValueError("embedding must be true or false; write `type: embedding` instead")
        spelled = Mode.EMBEDDING if flag else Mode.GENERATION
        if entry.setdefault("type", spelled.value) != spelled.value:
            raise ValueError(f"type says {entry['type']} and embedding says {spelled}; keep type")
        return entry

    def rules(self) -> ModelRules:
        """Return what the core goes by that was chosen for this model."""
        return ModelRules(
            is_pinned=self.pinned,
            idle_unload_s=self.idle_unload_s,
            max_concurrency=self.max_concurrency,
        )

    @property
    def profile_name(self) -> str:
        """The profile to run with when a switch names none."""
        return self.profile or self.type.value


class DefaultModels(Settings):
    """What requests mean that name no model, by what their route is for."""

    generation: str | None = Field(
        default=None,
        description="The model for generation. Default: the only one of that type; where there "
        "are several, a request that names none is refused with 400.",
    )
    embedding: str | None = Field(default=None, description="The same for embedding.")

    def of(self, mode: Mode) -> str | None:
        """Return the model that is written for a mode."""
        return self.generation if mode is Mode.GENERATION else self.embedding


class Catalogue(Settings):
    """`models.yaml`: the models that can be switched to."""

    default_model: str | None = Field(
        default=None, description="The model to load at start; none when left out."
    )
    idle_model: str | None = Field(
        default=None,
        description="The model that is made live again once nothing was asked for during "
        "`scheduler.idle_model_after_s`; none when left out. A hand's unload is left alone.",
    )
    default_models: DefaultModels = Field(
        default_factory=DefaultModels,
        description="By type, the model of requests that name none, and of switches to a type.",
    )
    models: dict[str, ModelEntry] = Field(
        default_factory=dict, description="Each model under the name clients use."
    )
    unknown_models: Literal["refuse", "default"] = Field(
        default="refuse",
        description="What becomes of a request that names a model which is not here: `refuse` "
        "answers 404 with the known names; `default` answers it as one that names none, by "
        "its route's default model, for clients that cannot name one.",
    )
    models_dir: EnvText | None = Field(
        default=None,
        description="A folder that is scanned: each GGUF in it that no entry names becomes a "
        "model, named after its file, its type read from its header. Relative to the models "
        "folder.",
    )
    allowed_roots: tuple[EnvText, ...] = Field(
        default=(),
        description="Folders in which model files must lie, links followed; default: anywhere. "
        "Relative to the models folder.",
    )
