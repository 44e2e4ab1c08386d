"""Files of batches as OpenAI's API has them: `/v1/files`."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, InstanceOf, model_validator

from supervisor.gateway.answer import Answer, PiecewiseAnswer, json_answer
from supervisor.gateway.parameters import Parameters
from supervisor.gateway.uploads import Upload

LONGEST_S = 10 * 366 * 86_400
"""For so long files are kept, and batches may take: ten years."""

_AS_CURL_D_SAYS = "application/x-www-form-urlencoded"

if TYPE_CHECKING:  # the jobs room is imported when the first job or file comes
    from supervisor.jobs.service import OpenJobs


class NewFileParameters(Parameters):
    """The form of `POST /v1/files`."""

    file: InstanceOf[Upload]
    purpose: Literal["batch"]
    expires_anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    expires_after_s: float | None = Field(None, alias="expires_after[seconds]", gt=0, le=LONGEST_S)

    @model_validator(mode="before")
    @classmethod
    def _require_a_file(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Refuse what `curl -d @FILE` sends, too: a file whose line breaks it took away."""
        file = given.get("file")
        if not isinstance(file, Upload) or (file.content_type or "").startswith(_AS_CURL_D_SAYS):
            raise ValueError(
                "send the file in a form, as `curl -F purpose=batch -F file=@FILE` does; `curl -d` "
                "takes its line breaks away"
            )
        return given


class FilesParameters(Parameters):
    """What `GET /v1/files` lists."""

    purpose: str | None = None
    after: str | None = None
    limit: int = Field(default=10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"


class FileParameters(Parameters):
    """Which file is meant."""

    file_id: str


class Files:
    """Handlers of the routes of files."""

    def __init__(self, open_jobs: "OpenJobs") -> None:
        self._open = open_jobs

    async def add(self, asked: NewFileParameters) -> Answer:
        """Keep a file that was uploaded."""
        jobs = await self._open()
        name = asked.file.file_name or "upload.jsonl"
        file = await jobs.add_file(asked.file.path, name, asked.purpose, asked.expires_after_s)
        return json_answer(jobs.describe_file(file))

    async def list(self, asked: FilesParameters) -> Answer:
        """List files."""
        jobs = await self._open()
        files = [*await jobs.files.files()]
        if asked.order == "asc":
            files.reverse()
        if asked.purpose is not None:
            files = [file for file in files if file.purpose == asked.purpose]
        ids = [file.id for file in files]
        if asked.after is not None:
            await jobs.file(asked.after)
            files = files[ids.index(asked.after) + 1 if asked.after in ids else 0 :]
        shown = [jobs.describe_file(file) for file in files[: asked.limit]]
        return json_answer(page(shown, has_more=len(files) > asked.limit))

    async def show(self, asked: FileParameters) -> Answer:
        """Show what is known of a file."""
        jobs = await self._open()
        return json_answer(jobs.describe_file(await jobs.file(asked.file_id)))

    async def content(self, asked: FileParameters) -> PiecewiseAnswer:
        """Send a file's content."""
        jobs = await self._open()
        file = await jobs.file(asked.file_id)
        return PiecewiseAnswer(
            headers=((b"Content-Type", b"application/octet-stream"),),
            size_bytes=file.size_bytes,
            pieces=jobs.files.read(file.id),
        )

    async def remove(self, asked: FileParameters) -> Answer:
        """Remove a file."""
        jobs = await self._open()
        await jobs.remove_file(asked.file_id)
        return json_answer({"id": asked.file_id, "object": "file", "deleted": True})


def page(shown: "list[dict[str, object]]", *, has_more: bool) -> "dict[str, object]":
    """Write one page of a list in OpenAI's form."""
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": has_more,
    }
