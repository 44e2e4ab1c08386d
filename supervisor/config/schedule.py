"""What the clock decides (`schedule` in `supervisor.yaml`)."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from supervisor.config.fields import Settings
from supervisor.config.problems import nearest
from supervisor.config.units import Seconds
from supervisor.core.machine.values import Mode

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

Days = tuple[Day, ...]

_CLOCK_TIME = re.compile(r"(\d\d):([0-5]\d)")
_MINUTES_OF_A_DAY = 24 * 60


def _minutes(value: Any) -> Any:
    """Turn `08:00` into minutes since midnight. YAML reads an unquoted `18:00` as 1080."""
    match = _CLOCK_TIME.fullmatch(value) if isinstance(value, str) else None
    minutes = int(match[1]) * 60 + int(match[2]) if match else None
    if minutes is None or minutes > _MINUTES_OF_A_DAY:
        raise ValueError('must be a time of day in quotes, from "00:00" to "24:00"')
    return minutes


def _cron(expression: str) -> str:
    from cronsim import CronSim, CronSimError  # noqa: PLC0415 - most serve without a schedule

    wanted = "five fields: minute hour day month weekday, such as 0 2 * * 1-5"
    if len(expression.split()) != 5:
        raise ValueError(f"must be a cron expression of {wanted}")
    try:
        next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValueError(f"is no cron expression ({error}); write {wanted}") from error
    except StopIteration:
        raise ValueError("is never due; write a day that comes") from None
    return expression


def _time_zone(name: str) -> str:
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError):
        hint = nearest(name, sorted(available_timezones())) or "; write one such as Asia/Seoul"
        raise ValueError(f"there is no time zone '{name}'{hint}") from None


ClockTime = Annotated[
    int,
    BeforeValidator(_minutes),
    WithJsonSchema({"type": "string", "pattern": r"^\d\d:[0-5]\d$"}),
]
"""A time of day in minutes since midnight; written as `08:00`, the end of a day as `24:00`."""


CronExpression = Annotated[str, AfterValidator(_cron)]
"""Five fields: minute, hour, day of the month, month, day of the week."""

TimeZone = Annotated[str, AfterValidator(_time_zone)]
"""A name of the IANA's database: `Asia/Seoul`."""


class ServedSettings(Settings):
    """What is served for a time: the models of a mode, one model, or all by request."""

    mode: Literal["generation", "embedding", "mixed"] | None = Field(
        default=None,
        description="`generation` or `embedding`: only models of that type get the device, and its "
        "default model is live. `mixed`: all, as they are asked for.",
    )
    model: str | None = Field(
        default=None, description="In place of `mode`: this model alone, which is live."
    )

    @model_validator(mode="after")
    def _say_one_thing(self) -> "ServedSettings":
        if (self.mode is None) == (self.model is None):
            raise ValueError("must have either `mode` or `model`")
        return self

    @property
    def serves(self) -> str:
        """What is served, in a word."""
        return self.model or self.mode or "mixed"

    @property
    def served_mode(self) -> Mode | None:
        """The mode whose models alone are served; None where it is not a mode that decides."""
        return None if self.mode in {None, "mixed"} else Mode(self.mode)


class ScheduleEntry(ServedSettings):
    """What is served from a time on: until the end of a window, or until another entry begins."""

    cron: CronExpression | None = Field(
        default=None,
        description="From each time on at which this cron expression is due (minute, hour, day, "
        "month, weekday), until another entry begins.",
    )
    from_: ClockTime | None = Field(
        default=None, alias="from", description="In place of `cron`: from this time of day…"
    )
    to: ClockTime | None = Field(
        default=None,
        description="…to this one; where that is earlier, over midnight. `24:00` ends a day.",
    )
    days: Days = Field(
        default=(),
        description="Days on which the window begins (`mon` to `sun`). Default: all.",
    )
    until_done: bool = Field(
        default=False,
        description="With `cron`: only until no batch or document is left to be worked on.",
    )
    optimize: bool = Field(
        default=False,
        description="Build the indexes of the vector store when it begins, with `until_done` once "
        "the work is done.",
    )

    @model_validator(mode="after")
    def _be_cron_or_window(self) -> "ScheduleEntry":
        if (self.cron is None) == (self.from_ is None and self.to is None):
            raise ValueError("must have either `cron`, or `from` and `to`")
        if self.cron is None and (self.from_ is None or self.to is None):
            raise ValueError("must have both `from` and `to`")
        if self.from_ == _MINUTES_OF_A_DAY:
            raise ValueError(
                "`from` is 24:00, the end of a day; write 00:00, and in `days` the day after each"
            )
        if self.cron is None and self.from_ == self.to:
            raise ValueError("`from` and `to` are the same; a whole day is 00:00 to 24:00")
        if self.cron is None and self.until_done:
            raise ValueError("`until_done` is for entries with `cron`")
        if self.cron is not None and self.days:
            raise ValueError("`days` is for windows; a cron expression has days of its own")
        return self

    def describe(self) -> str:
        """Say when it holds: `02:00–06:00` or `cron 0 2 * * *`."""
        if self.cron is not None:
            return f"cron {self.cron}" + (" until done" if self.until_done else "")
        times = "–".join(f"{(m or 0) // 60:02}:{(m or 0) % 60:02}" for m in (self.from_, self.to))
        return " ".join((times, *self.days))


class ScheduleSettings(Settings):
    """When which models are served, by the wall clock of a time zone."""

    time_zone: TimeZone = Field(description="Whose clocks are meant, such as `Asia/Seoul`.")
    baseline: ServedSettings = Field(
        description="What is served while no entry is in force: `{mode: generation}`."
    )
    entries: tuple[ScheduleEntry, ...] = Field(
        default=(),
        description="Of those that are in force, the one that began last holds; of two that began "
        "at once, the one written last.",
    )
    outside_window: Literal["wait", "refuse"] = Field(
        default="wait",
        description="What becomes of requests for models that are not served now. `wait`: they "
        "wait where their time comes within `queue.hold_timeout_s`, or may come at any time; all "
        "others get 503 with the time at which they will be served. `refuse`: all get that.",
    )
    lead_s: Seconds | None = Field(
        default=None,
        ge=0,
        le=900,
        description="Seconds before an entry begins in which its model is made ready. Default: as "
        "long as the longest of the last switches and drains, and a quarter more; 37.5 s before "
        "any was measured.",
    )
