"""What the rest of the product asks of an engine: a command line, and what it is able to do."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from supervisor.config.configuration import ResolvedModel
from supervisor.engine.prompts.prompt_cache import PromptFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a child listens: a unix socket, or a loopback port where the engine has none."""

    socket_path: Path | None = None
    port: int | None = None

    def describe(self) -> str:
        """Return the address as an operator would write it."""
        return str(self.socket_path) if self.socket_path else f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRoute:
    """Where text is turned into tokens: the path, and the field of its JSON that takes the text.

    The answer is `{"tokens": [...]}`, with those that the model puts around a text.
    """

    path: str
    text_field: str

    special_field: str | None = None
    """The field to be set for those around a text; None: they always come."""

    pieces_field: str | None = None
    """The field to be set for the text of each token, too; None: it tells ids only."""

    joins_lists: bool = False
    """Whether the field takes a list of texts and ids, too, and answers one list: each text as its
    tokens alone, each id as it is. So many texts are asked about at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkRoutes:
    """Where a server is told to give its devices' memory up (POST), and to take it back (POST).

    `is_asleep` (GET) answers JSON: `true`, or an object with a field that is true, while it has
    given it up.
    """

    sleep: str
    wake: str
    is_asleep: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a server can do, and where. The product asks for these, never for an engine's name.

    Without arguments: a server of which nothing is known but that it answers HTTP.
    """

    readiness_path: str = "/health"
    """What is asked, with the key, until the server is ready."""

    readiness_status: int = 200
    """The status that means ready; any other means not yet."""

    has_unix_socket: bool = False
    """Whether it can listen on a unix socket; else it gets a loopback port."""

    slots_path: str | None = None
    """Where it shows what its slots do; None where it has none."""

    saves_slots: bool = False
    """Whether a slot's prompt can be saved to a file and restored, under `slots_path`."""

    tokenize: TokenizeRoute | None = None
    """How it is asked for tokens; None where it cannot tell."""

    takes_token_ids: bool = False
    """Whether an input of `/v1/embeddings` may be a list of token ids, to which it adds none."""

    splits_inputs: bool = False
    """Whether it computes an input over several micro-batches where the model's pooling allows."""

    embeds_base64: bool = False
    """Whether `/v1/embeddings` answers in base64 where that is asked for; else in numbers only."""

    takes_embd_normalize: bool = False
    """Whether its vectors have length 1, or with `embd_normalize: -1` the length that they come
    with; else that is not known."""

    metrics_path: str | None = None
    """Where its Prometheus metrics are; None where it has none."""

    requests_at_once: int = 1024
    """Requests that it is sent at a time; further ones wait with us, the first come first."""

    takes_request_id: bool = True
    """Whether any `X-Request-ID` may be sent to it; else it refuses those that are no UUID."""

    chooses_flash_attention: bool = True
    """Whether `flash_attn: auto` leaves the choice to it; else flash attention is off then."""

    keeps_checkpoints: bool = False
    """Whether it copies state that cannot go back to host memory, as `ctx_checkpoints` says."""

    runs_gguf_only: bool = False
    """Whether a model is a GGUF file; else it may be a folder or a name that it knows."""

    api_key_variable: str | None = None
    """The environment variable that takes its key; never an argument, which `ps` shows."""

    park_routes: ParkRoutes | None = None
    """Where it is told to give its devices' memory up and live on; None where it cannot."""

    stop_signal: signal.Signals = signal.SIGTERM
    """What asks it to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All that is needed to spawn one server, and to talk to it.

    `folder`: the identity of the data folder whose controller starts it. `profile`: the name of
    what `model` runs with. `model_path`: the file that it runs, whatever is configured since.
    `prompt_files`: where its prompts are kept while it does not run; None: they are not.
    `may_checkpoint`: the driver may park its process.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    address: Address
    api_key: str
    model: str
    profile: str
    epoch: int
    folder: str = ""
    model_path: Path | None = None
    abilities: Abilities = Abilities()
    prompt_files: PromptFiles | None = None
    may_checkpoint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIdentity:
    """Which engine this is, by its own account.

    `location`: where it was found. `build`: with what it was compiled, or which libraries it loads.
    `devices`: what it can compute on; empty where it lists none. `problem`: why that is not known.
    """

    name: str
    location: str
    version: str
    build: str = ""
    devices: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStart:
    """What decides the command line and the environment of a start.

    `slots_dir`: an existing folder in which a server that keeps its prompts saves its slots.
    """

    model: ResolvedModel
    address: Address
    api_key: str = ""
    slots_dir: Path | None = None


class Engine(Protocol):
    """A way to run a model behind HTTP as a child process."""

    @property
    def identity(self) -> EngineIdentity:
        """Name, place, version, build and devices, read once. Raises EngineError. May block."""
        ...

    def abilities(self, resolved: ResolvedModel) -> Abilities:
        """Return what its server can do for this model. Raises EngineError."""
        ...

    def check(self, resolved: ResolvedModel) -> None:
        """Raise UnfitProfile, naming the fields, when this engine cannot honour the profile.

        Raises EngineError when the engine itself cannot run. May block, the first time.
        """
        ...

    def argv(self, start: ServerStart) -> tuple[str, ...]:
        """Return the command line that serves the model at the address.

        The key is for servers that take it as an argument only. Raises what `check` raises.
        """
        ...

    def environment(self, start: ServerStart, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the child's environment: what it inherits, the profile's, and the key."""
        ...
