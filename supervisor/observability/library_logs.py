"""What libraries log, as events of ours: one line each, and nothing of what clients sent.

aiohttp's tracebacks may hold bytes of a request in their last lines, and with them keys and
prompts; asyncio's messages hold the representation of exceptions.
"""

import logging
import traceback
from pathlib import Path

import structlog

MAX_MESSAGE_CHARACTERS = 200


class LibraryLogs(logging.Handler):
    """Hands records of the `logging` module to structlog.

    Of a message only the first line is kept (asyncio writes what it is about below it), of an
    exception its type and where it was raised: its text may quote a request.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; its level is one that structlog knows."""
        log = structlog.get_logger()
        level = record.levelname.lower()
        write = getattr(log, level if hasattr(log, level) else "warning")
        error = record.exc_info[1] if record.exc_info else None
        first_line = record.getMessage().strip().partition("\n")[0]
        raised = {} if error is None else _describe(error)
        write(
            "library.message",
            logger=record.name,
            message=first_line[:MAX_MESSAGE_CHARACTERS],
            **raised,
        )


def take_over_library_logs(level: str) -> None:
    """Send everything that libraries log or warn of to structlog, in place of standard error."""
    logging.basicConfig(handlers=[LibraryLogs()], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)


def _describe(error: BaseException) -> dict[str, str]:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = (f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)
    return {"error": type(error).__name__, "raised_at": ", ".join(places)}
