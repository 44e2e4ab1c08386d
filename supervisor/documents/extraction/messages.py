"""What the controller and the process that reads files say to each other.

A task goes with two descriptors: the document's file, and a socket for the answer.
"""

import msgspec

from supervisor.documents.values import Division, ReadDocument


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What reading one document may take.

    `max_inflated`: by how much what is compressed in it may grow in all, as a factor.
    """

    timeout_s: float
    memory_bytes: int
    max_pages: int
    max_characters: int
    max_inflated: int


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A document to be read. Name and media type are what its sender says of it."""

    file_name: str | None
    media_type: str | None
    division: Division
    limits: Limits


class Unread(msgspec.Struct, frozen=True, tag=True):
    """The document cannot be read, for a reason that its sender can understand.

    `is_missing_extra`: what reads such documents is not installed.
    """

    reason: str
    is_missing_extra: bool = False


class Read(msgspec.Struct, frozen=True, tag=True):
    """What the document says."""

    document: ReadDocument


Outcome = Read | Unread


class UnreadableError(Exception):
    """A document cannot be read; the message says why."""
