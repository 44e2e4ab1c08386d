"""Batches as OpenAI's API has them: `/v1/batches`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, TypeAdapter

from supervisor.config.units import Seconds
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer, json_answer
from supervisor.gateway.files import LONGEST_S, page
from supervisor.gateway.parameters import Parameters
from supervisor.vector_store.opening import StoreOpener
from supervisor.vector_store.port import DEFAULT_COLLECTION, require_name

if TYPE_CHECKING:  # the jobs room is imported when the first job or file comes
    from supervisor.jobs.service import OpenJobs

_seconds = TypeAdapter(Annotated[Seconds, Field(gt=0, le=LONGEST_S)]).validate_python

MAX_METADATA = 16
"""Pairs of `metadata`; names have up to 64 characters, values 512 (OpenAI's API reference)."""

_Name = Annotated[str, StringConstraints(max_length=64)]
_Value = Annotated[str, StringConstraints(max_length=512)]


def _a_duration(text: str) -> str:
    _seconds(text)
    return text


class OutputExpiry(Parameters):
    """How long the files that a batch writes are kept."""

    anchor: Literal["created_at"] = "created_at"
    seconds: float = Field(gt=0, le=LONGEST_S)


class Storing(Parameters):
    """Where the vectors of a batch are kept; a line is a document there, by its `custom_id`."""

    collection: str = DEFAULT_COLLECTION


class NewBatchParameters(Parameters):
    """The body of `POST /v1/batches`; what stands below `output_expires_after` is ours."""

    input_file_id: str
    endpoint: Literal["/v1/embeddings", "/v1/chat/completions", "/v1/completions"]
    completion_window: Annotated[str, AfterValidator(_a_duration)] = "24h"
    metadata: dict[_Name, _Value] | None = Field(default=None, max_length=MAX_METADATA)
    output_expires_after: OutputExpiry | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    not_before: AwareDatetime | None = None
    store: Storing | None = None
    callback_url: str | None = Field(default=None, max_length=2048)

    @property
    def window_s(self) -> float:
        """Seconds until it ends, done or not."""
        return float(_seconds(self.completion_window))

    @property
    def not_before_s(self) -> float:
        """When it may begin, in seconds of the wall clock."""
        return 0.0 if self.not_before is None else self.not_before.timestamp()

    @property
    def files_expire_after_s(self) -> float | None:
        """How long its files are kept; None: as long as others."""
        return None if self.output_expires_after is None else self.output_expires_after.seconds

    @property
    def extensions(self) -> dict[str, Any]:
        """What is asked beyond OpenAI's API and concerns its kind alone."""
        store = None if self.store is None else {"collection": self.store.collection}
        asked = {"callback_url": self.callback_url, "store": store}
        return {name: value for name, value in asked.items() if value is not None}


class BatchesParameters(Parameters):
    """What `GET /v1/batches` lists."""

    after: str | None = None
    limit: int = Field(default=20, ge=1, le=100)


class BatchParameters(Parameters):
    """Which batch is meant."""

    batch_id: str


class Batches:
    """Handlers of the routes of batches."""

    def __init__(self, open_jobs: "OpenJobs", opener: StoreOpener) -> None:
        self._open = open_jobs
        self._opener = opener

    async def add(self, asked: NewBatchParameters) -> Answer:
        """Take a batch."""
        if asked.store is not None:
            await self._require_store(asked, asked.store.collection)
        jobs = await self._open()
        return json_answer(jobs.describe_batch(await jobs.add_batch(asked)))

    async def list(self, asked: BatchesParameters) -> Answer:
        """List batches, the newest first."""
        jobs = await self._open()
        found = await jobs.batches(asked.after, asked.limit + 1)
        shown = [jobs.describe_batch(job) for job in found[: asked.limit]]
        return json_answer(page(shown, has_more=len(found) > asked.limit))

    async def show(self, asked: BatchParameters) -> Answer:
        """Show a batch."""
        jobs = await self._open()
        return json_answer(jobs.describe_batch(await jobs.batch(asked.batch_id)))

    async def cancel(self, asked: BatchParameters) -> Answer:
        """Cancel a batch; what was answered by then is written to its files."""
        jobs = await self._open()
        batch = await jobs.batch(asked.batch_id)
        return json_answer(jobs.describe_batch(await jobs.cancel(batch.id)))

    async def _require_store(self, asked: NewBatchParameters, collection: str) -> None:
        """Raise RequestRefused where the vectors of a batch could not be kept in any case."""
        if asked.endpoint != "/v1/embeddings":
            raise RequestRefused(
                "bad_request", f"`store` keeps vectors, and {asked.endpoint} makes none"
            )
        require_name(collection)
        await self._opener.store()
