"""What reads documents, shared by the tests of a module."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

from supervisor.documents.extraction.extractor import Extractor
from supervisor.documents.extraction.messages import Limits
from supervisor.documents.values import Division, ReadDocument, Source

TOKENIZER = Path(__file__).parents[2] / "models" / "minilm.tokenizer.json"
DIVISION = Division(size=60, overlap=10, tokenizer=str(TOKENIZER))
LIMITS = Limits(
    timeout_s=60.0,
    memory_bytes=512 * 1024 * 1024,
    max_pages=100,
    max_characters=1_000_000,
    max_inflated=100,
)

Reading = Callable[..., Awaitable[ReadDocument]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of this room on the loop that the command line runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def extractor() -> AsyncIterator[Extractor]:
    extractor = Extractor(os.environ, at_once=2)
    yield extractor
    await extractor.close()


@pytest.fixture
def read(extractor: Extractor) -> Reading:
    """Read a file, by its own name or another."""

    async def read(
        path: Path,
        file_name: str | None = None,
        media_type: str | None = None,
        limits: Limits = LIMITS,
        division: Division = DIVISION,
    ) -> ReadDocument:
        source = Source(path=path, file_name=file_name or path.name, media_type=media_type)
        return await extractor.read(source, division, limits)

    return read
