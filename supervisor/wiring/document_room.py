"""Makes the documents room. Imported when the jobs room is opened: see `wiring/jobs.py`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.settings import DocumentSettings
from supervisor.documents.dividing import Planner
from supervisor.documents.embedding_parts import PartEmbedder
from supervisor.documents.extraction.extractor import Extractor
from supervisor.documents.ingest import DocumentHandler
from supervisor.documents.keeping import Keeper
from supervisor.documents.opening import DocumentOpener
from supervisor.documents.service import DocumentService
from supervisor.engine.targets import Targets
from supervisor.jobs.port import FileStore, JobQueue
from supervisor.jobs.service import JobService
from supervisor.wiring.embedding import Embedding
from supervisor.wiring.ground import Ground

_READ_AT_ONCE = 2
"""Documents; as many as jobs are begun at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRoom:
    """Who takes documents in, who works on them, and who reads their files."""

    service: DocumentService
    handler: DocumentHandler
    extractor: Extractor


@dataclass(frozen=True, slots=True, kw_only=True)
class JobParts:
    """What the documents room has of the jobs room. `keep_s`: how long files are kept."""

    service: JobService
    queue: JobQueue
    files: FileStore
    work_dir: Path
    keep_s: Callable[[], float]


def make_document_room(
    ground: Ground, targets: Targets, embedding: Embedding, jobs: JobParts
) -> DocumentRoom:
    """Make it; nothing of it works yet."""

    def settings() -> DocumentSettings:
        return ground.configuration.current.settings.documents

    extractor = Extractor(os.environ, at_once=_READ_AT_ONCE)
    planner = Planner(targets, embedding.preparer, settings)
    handler = DocumentHandler(
        jobs.queue,
        jobs.files,
        DocumentOpener(jobs.files, planner, extractor, settings, jobs.work_dir),
        PartEmbedder(embedding.service, targets),
        Keeper(ground.vectors, jobs.files, jobs.work_dir, jobs.keep_s),
    )
    service = DocumentService(
        jobs.service, embedding.service, targets, ground.vectors, jobs.work_dir
    )
    return DocumentRoom(service=service, handler=handler, extractor=extractor)
