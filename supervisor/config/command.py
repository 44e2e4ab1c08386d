"""The `command` section of a profile: how a server that is not llama.cpp's is started.

Words and variables may hold placeholders, which are filled in at each start:

    {port} or {socket}   where to listen: a fresh loopback port, or a unix socket in our own folder
    {model}              the model's file or folder, or its name as written in the catalogue
    {alias}, {aliases}   the name that clients use; a word `{aliases}` becomes a word for each
    {api_key}            the key of this start; better in `env` than in `argv`, which `ps` shows
    {profile.FIELD}      a field of the profile
"""

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from supervisor.config.fields import Settings
from supervisor.config.problems import nearest
from supervisor.config.units import EnvText

PLACEHOLDER = re.compile(r"\{([a-z_]+(?:\.[a-z_]+)*)\}")
"""Lower-case letters in braces. Braces around anything else, such as JSON, stand for themselves."""

_NAMES = ("port", "socket", "model", "alias", "aliases", "api_key", "profile.FIELD")


def unknown_placeholder(name: str, profile_fields: tuple[str, ...] = ()) -> str:
    """Say that a placeholder is not known, and which are."""
    known = [f"profile.{field}" for field in profile_fields]
    listed = ", ".join(f"{{{each}}}" for each in _NAMES)
    return f"{{{name}}} is not a placeholder{nearest(name, known)}; there are: {listed}"


def _path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"must begin with /, as in /health, not {path!r}")
    return path


Path = Annotated[str, AfterValidator(_path)]


class ParkSettings(Settings):
    """How a server is told to give its devices' memory up, and to take it back.

    vLLM's, with `--enable-sleep-mode` and `VLLM_SERVER_DEV_MODE=1`:
    `{sleep: "/sleep?level=1", wake: /wake_up, is_asleep: /is_sleeping}`.
    """

    sleep: Path = Field(
        description="Path and query of the POST by which it gives the memory up, and lives on."
    )
    wake: Path = Field(description="That of the POST by which it takes the memory back.")
    is_asleep: Path = Field(
        description="That of the GET that answers whether it has given it up: `true`, or an object "
        "with a field that is true."
    )


class CommandSettings(Settings):
    """How any HTTP server is started, and how it is seen to be ready."""

    argv: tuple[str, ...] = Field(
        min_length=1,
        description="The program and its arguments, without a shell. Placeholders: `{port}` or "
        "`{socket}` (one of them), `{model}`, `{alias}`, `{aliases}`, `{api_key}`, "
        "`{profile.FIELD}`.",
    )
    env: dict[str, EnvText] = Field(
        default_factory=dict,
        description="Environment for the server, over that of the profile; placeholders as in "
        "`argv`, and variables: `${HF_TOKEN}`.",
    )
    readiness_path: Path = Field(
        default="/health", description="Path that is asked until the server is ready."
    )
    readiness_status: int = Field(
        default=200, ge=100, le=599, description="Its status when the server is ready."
    )
    takes_token_ids: bool = Field(
        default=False,
        description="Whether an input of its `/v1/embeddings` may be a list of token ids, as with "
        "vLLM; else a model with a `tokenizer` is sent texts.",
    )
    embeds_base64: bool = Field(
        default=False,
        description="Whether its `/v1/embeddings` knows `encoding_format: base64`, which is a "
        "quarter of the bytes.",
    )
    park: ParkSettings | None = Field(
        default=None,
        description="For `give_up_memory: park`: how it is told to give its devices' memory up and "
        "live on, and to take it back.",
    )
    stop_signal: Literal["SIGTERM", "SIGINT", "SIGQUIT"] = Field(
        default="SIGTERM",
        description="The signal that asks it to end, before SIGKILL after `stop_grace_s`.",
    )

    def placeholders(self) -> Iterator[str]:
        """Yield the names of all placeholders in words and variables."""
        for text in (*self.argv, *self.env.values()):
            yield from PLACEHOLDER.findall(text)

    @property
    def listens_on_socket(self) -> bool:
        """Whether it is given a unix socket; else it is given a port."""
        return "socket" in self.placeholders()

    @field_validator("argv")
    @classmethod
    def _know_words(cls, argv: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_unknown(*argv)
        return argv

    @field_validator("env")
    @classmethod
    def _know_variables(cls, env: dict[str, str]) -> dict[str, str]:
        _refuse_unknown(*env.values())
        return env

    @model_validator(mode="after")
    def _listen_in_one_place(self) -> Self:
        places = {"port", "socket"} & set(self.placeholders())
        if len(places) != 1:
            fault = "are both" if places else "are neither"
            raise ValueError(
                f"{{port}} and {{socket}} {fault} in argv or env; write one of them, so that the "
                "server listens where it is asked"
            )
        return self


def _refuse_unknown(*texts: str) -> None:
    for text in texts:
        for name in PLACEHOLDER.findall(text):
            if name not in _NAMES and not name.startswith("profile."):
                raise ValueError(unknown_placeholder(name))
