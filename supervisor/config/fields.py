"""What all sections that operators write have in common."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, and strict about names: an unknown key is an error, never ignored.

    Numbers are finite: what is counted, added to a time or written as JSON must be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
