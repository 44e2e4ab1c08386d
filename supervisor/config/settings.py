"""The controller's own settings (`supervisor.yaml`)."""

import math
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from supervisor.config.device_choice import DeviceId
from supervisor.config.fields import Settings
from supervisor.config.schedule import ScheduleSettings
from supervisor.config.scheduler import SchedulerSettings
from supervisor.config.units import Bytes, EnvText, Seconds
from supervisor.config.urls import EnvUrl, HostAndPort, HostName, Origin, http_url, redis_url
from supervisor.core.byte_size import MIB
from supervisor.core.machine.rules import DrainPolicy, Limits, SwitchRules


class ServerSettings(Settings):
    """Where the controller listens and what it takes."""

    host: str | tuple[str, ...] = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on, or a list of them; `::` serves IPv4, too.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 = any free one.")
    max_body_bytes: Bytes = Field(
        default=64 * MIB, ge=1, description="Largest request body in bytes; above it: 413."
    )
    bodies_max_bytes: Bytes | None = Field(
        default=None,
        ge=1,
        description="Memory that all request bodies may take together, coming in, waiting and "
        "being answered; beyond: 503. Default: 256 MiB, or a quarter of the memory cgroup's limit "
        "where that is less.",
    )
    head_timeout_s: Seconds = Field(
        default=15.0, gt=0, description="Seconds that the head of a request may take; beyond: 408."
    )
    body_timeout_s: Seconds = Field(
        default=30.0,
        gt=0,
        description="Seconds without a further byte of a request's body, and seconds by which a "
        "body may come later than at 4 KiB a second; beyond: 408.",
    )
    idle_timeout_s: Seconds = Field(
        default=75.0, gt=0, description="Seconds after which an idle connection is closed."
    )
    write_timeout_s: Seconds = Field(
        default=60.0,
        gt=0,
        description="Seconds in which a client takes nothing of its answer; beyond: it is cut. "
        "One that takes a little all the time is cut once its model has waited 60 s for it in all, "
        "10 s where others wait for a permit; 1 MiB is buffered for each before that counts.",
    )
    allowed_hosts: tuple[HostName, ...] = Field(
        default=(),
        description="Names under which browsers, and on loopback everybody, may call, beside "
        "addresses, `localhost` and the machine's own name.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=(),
        description="Origins whose pages may call and read answers: `https://chat.example`, or "
        "`*` for all. Default: none.",
    )
    fast_lane: bool = Field(
        default=True,
        description="Relay plain requests without the HTTP framework, at a fraction of the "
        "processor time; all others go its way. False: every request does.",
    )
    log_level: Literal["debug", "info", "warning"] = Field(
        default="info",
        description="Lowest level that is logged; debug adds what servers write while they serve.",
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Log lines for people, or JSON for machines."
    )

    @property
    def hosts(self) -> tuple[str, ...]:
        """All addresses to listen on."""
        return (self.host,) if isinstance(self.host, str) else self.host


class DeviceSettings(Settings):
    """What a device may carry."""

    budget_bytes: Bytes | None = Field(
        default=None, gt=0, description="Bytes that backends may take in total; default: its total."
    )
    exclusive: bool = Field(default=False, description="Only one backend at a time.")
    required: bool = Field(
        default=False,
        description="The controller does not start without this device: where it is not seen or "
        "cannot be used, it ends with the reason. Otherwise models run on what is there.",
    )


class QueueSettings(Settings):
    """Bounds on requests that wait for a switch."""

    hold_max_requests: int = Field(
        default=10_000, ge=0, description="Requests that may wait; beyond: 503."
    )
    model_share: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="The largest part of these, and of server.bodies_max_bytes, that may wait for "
        "one model, so that its clients leave room for those of the others; beyond: 429.",
    )
    hold_timeout_s: Seconds = Field(
        default=300.0, gt=0, description="Seconds that a request may wait; beyond: 503."
    )
    max_embedding_inputs: int = Field(
        default=100_000,
        ge=1,
        description="Inputs of the embedding service that may wait, of all models together, beside "
        "those that are being computed; beyond: 429.",
    )
    max_embedding_tokens: int = Field(
        default=10_000_000,
        ge=1,
        description="Tokens of these inputs; each takes up to 40 bytes of memory. Beyond: 429.",
    )
    p95_target_ms: float | None = Field(
        default=None,
        gt=0,
        description="Milliseconds that an interactive embedding may wait for others: one that "
        "would wait longer, by the speed measured of late, is refused with 429. Default: no bound.",
    )
    retry_generation: bool = Field(
        default=False,
        description="Repeat a generation whose server died before its first byte; what is safe to "
        "repeat (embeddings, tokenising, GET) always is.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_what_replaces(cls, section: Any) -> Any:
        if isinstance(section, dict) and "hold_max_bytes" in section:
            raise ValueError(
                "hold_max_bytes is replaced by server.bodies_max_bytes, which counts all bodies: "
                "those that come in, wait and are answered"
            )
        return section

    early_answer_after_s: Seconds | None = Field(
        default=5.0,
        ge=0,
        description="Seconds of waiting after which a generation with `stream: true` is answered "
        "200 and a comment line each second, with its position and what it waits for, until its "
        "stream begins: proxies and clients do not give up. What fails then ends as a broken "
        "stream with one error event, without a status of its own. Empty: never; the status comes "
        "with the answer.",
    )


class SwitchSettings(Settings):
    """How switches and the shutdown behave."""

    drain_policy: DrainPolicy = Field(
        default=DrainPolicy.CANCEL,
        description="What happens to requests that are in flight when drain_timeout_s is over: "
        "`cancel` ends them visibly broken, `wait` goes on waiting, `refuse` gives the switch up.",
    )
    residents: Literal["keep", "replace"] = Field(
        default="keep",
        description="What becomes of live models that fit beside the target: `keep` lets them "
        "go on serving; `replace` leaves the target alone, which starts beside them first, so that "
        "nobody waits.",
    )
    warm_start: bool = Field(
        default=True,
        description="Read the target's file into the page cache while its predecessor drains.",
    )
    prompt_cache_max_bytes: Bytes = Field(
        default=8192 * MIB,
        ge=0,
        description="Bytes on disk for prompts kept over switches (`keep_prompt_cache` of a "
        "profile); beyond it the oldest go.",
    )
    keep_prompt_cache_at_exit: bool = Field(
        default=False,
        description="Save prompts when the controller ends, too, and leave them for the next one; "
        "else they are deleted then.",
    )
    parked_max_bytes: Bytes | None = Field(
        default=None,
        ge=0,
        description="Bytes of host memory that servers may hold together which gave their GPUs' "
        "memory up and live on (`give_up_memory: park` of a profile); beyond it those are stopped "
        "that have been parked for longest. Default: as much as the budget of `host` leaves.",
    )
    cuda_checkpoint: bool = Field(
        default=False,
        description="Let NVIDIA's driver (570 or newer) park servers that have no way of their "
        "own: all but those with `engine: command`. It pays only where a start takes longer than "
        "to move what a server holds to the host and back.",
    )
    history_size: int = Field(default=1000, ge=1, description="Switches kept for /switches.")
    shutdown_drain_timeout_s: Seconds = Field(
        default=30.0, ge=0, description="Seconds that requests get after SIGTERM."
    )


class EngineSettings(Settings):
    """Where engines are found."""

    llama_server_bin: EnvText | None = Field(
        default=None,
        description="The llama-server binary; default: LLAMA_SERVER_BIN, PATH, the cached build.",
    )


class JobSettings(Settings):
    """Work that nobody waits for: batches and their files."""

    max_bytes: Bytes = Field(
        default=16_384 * MIB,
        ge=0,
        description="Bytes on disk that jobs and their files may take together; beyond: 507, and "
        "work on jobs waits.",
    )
    files_max_bytes: Bytes = Field(
        default=200 * MIB, ge=1, description="The largest file that is taken in; above it: 413."
    )
    file_days: float = Field(
        default=30.0,
        gt=0,
        le=36_500,
        description="Days after which files, and jobs that have ended, are deleted.",
    )
    workers: int = Field(
        default=2,
        ge=1,
        le=64,
        description="How many work on each kind of job, each on up to 256 lines at once.",
    )
    queue_url: EnvUrl | None = Field(
        default=None,
        description="A Redis server's URL, as `redis://:${REDIS_PASSWORD}@redis:6379/0`, on which "
        "several controllers share one queue; default: a queue of one's own, in the data folder. "
        "A variable before the `@` holds the password itself, not percent-encoded. Read at the "
        "start. Needs the extra `llama-supervisor[redis]`.",
    )
    files_dir: EnvText | None = Field(
        default=None,
        description="A folder that all who share the queue can write, for the files of jobs; "
        "default: the Redis server, or the data folder. Read at the start.",
    )
    callback_hosts: tuple[HostAndPort, ...] = Field(
        default=(),
        description="Hosts that may be told of the end of a job (`callback_url`): a name or an "
        "address, on any port or with one (`hooks.example:8443`). Default: none.",
    )
    callback_key_env: str | None = Field(
        default=None,
        description="The environment variable that has the key by which callbacks are signed: "
        "`whsec_` and base64, or any text.",
    )

    @field_validator("queue_url")
    @classmethod
    def _names_a_server(cls, url: str | None) -> str | None:
        return None if url is None else redis_url(url)

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if self.callback_hosts and self.callback_key_env is None:
            raise ValueError("callback_hosts needs callback_key_env: callbacks are signed")
        return self


class VectorSettings(Settings):
    """Where the vectors of documents are kept."""

    url: EnvUrl | None = Field(
        default=None,
        description="A Qdrant server's URL, as http://qdrant:6333 (without a port: 6333); default: "
        "the embedded store, in the data folder. Read at the start.",
    )
    api_key_env: str | None = Field(
        default=None, description="The environment variable that has the server's key."
    )

    @field_validator("url")
    @classmethod
    def _names_a_server(cls, url: str | None) -> str | None:
        return None if url is None else http_url(url)


class DocumentSettings(Settings):
    """How documents are read and divided."""

    max_bytes: Bytes = Field(
        default=200 * MIB, ge=1, description="The largest file that is taken in; above it: 413."
    )
    max_pages: int = Field(default=5000, ge=1, description="Pages of a document; above it: 422.")
    max_characters: int = Field(
        default=10_000_000, ge=1, description="Characters of a document's text; above it: 422."
    )
    memory_bytes: Bytes = Field(
        default=1024 * MIB,
        ge=64 * MIB,
        description="Memory that reading one document may take; beyond: 422.",
    )
    timeout_s: Seconds = Field(
        default=60.0, gt=0, description="Seconds that reading one may take; beyond: 422."
    )
    chunk_tokens: int = Field(
        default=240,
        ge=1,
        description="Tokens of a chunk at most, special ones not counted; fewer where the model "
        "takes less. A model without `tokenizer` has 3 characters a token, by estimate.",
    )
    chunk_overlap_tokens: int = Field(
        default=24,
        ge=0,
        description="Tokens that a chunk has in common with the one before, at most half of one.",
    )

    @model_validator(mode="after")
    def _require_progress(self) -> Self:
        if self.chunk_overlap_tokens * 2 > self.chunk_tokens:
            raise ValueError("chunk_overlap_tokens is more than half of chunk_tokens")
        return self


class SupervisorSettings(Settings):
    """`supervisor.yaml`: everything that is neither a model nor a profile."""

    server: ServerSettings = Field(default_factory=ServerSettings)
    devices: dict[DeviceId, DeviceSettings] = Field(
        default_factory=dict,
        description="By id: `gpu0`, `gpu1`, `host`.",
        json_schema_extra={"additionalProperties": False},
    )
    engines: EngineSettings = Field(default_factory=EngineSettings)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    switch: SwitchSettings = Field(default_factory=SwitchSettings)
    scheduler: SchedulerSettings = Field(default_factory=SchedulerSettings)
    vectors: VectorSettings = Field(default_factory=VectorSettings)
    jobs: JobSettings = Field(default_factory=JobSettings)
    documents: DocumentSettings = Field(default_factory=DocumentSettings)
    schedule: ScheduleSettings | None = Field(
        default=None, description="What the clock decides. Default: nothing."
    )

    def limits(self) -> Limits:
        """Return the bounds on waiting requests as the core takes them."""
        return Limits(
            hold_max_requests=self.queue.hold_max_requests,
            hold_max_per_model=math.ceil(self.queue.hold_max_requests * self.queue.model_share),
            hold_timeout_s=self.queue.hold_timeout_s,
        )

    def rules(self) -> SwitchRules:
        """Return how switches go about their work, as the core takes it."""
        return SwitchRules(
            replaces=self.switch.residents == "replace",
            warms=self.switch.warm_start,
            keeps_prompts_at_exit=self.switch.keep_prompt_cache_at_exit,
            parked_max_bytes=self.switch.parked_max_bytes,
            scheduling=self.scheduler.rules(self.queue.hold_timeout_s),
            scheduler_drains=self.scheduler.drain_policy,
            manual_hold_s=self.scheduler.manual_hold_s,
            idle_after_s=self.scheduler.idle_model_after_s,
        )

    def budget_bytes(self, device: str, total_bytes: int) -> int:
        """Return what backends may take of a device in all: the operator's bound, or its total."""
        given = self.devices.get(device)
        return (given.budget_bytes if given else None) or total_bytes
