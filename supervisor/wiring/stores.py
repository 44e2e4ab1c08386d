"""Opens what stands in the data folder and outlives a switch."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from supervisor.config.settings import SwitchSettings
from supervisor.data_folder import HISTORY, DataFolder
from supervisor.engine.needs.learned_store import FILE_NAME as LEARNED_NEEDS_FILE
from supervisor.engine.needs.learned_store import LearnedStore
from supervisor.engine.prompts.prompt_cache import PromptCache
from supervisor.observability.estimates_store import FILE_NAME as ESTIMATES_FILE
from supervisor.observability.estimates_store import EstimatesStore
from supervisor.observability.history import SwitchHistory
from supervisor.observability.impairments import Impairments
from supervisor.observability.schedule_store import FILE_NAME as SCHEDULE_FILE
from supervisor.observability.schedule_store import ScheduleStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What stands in the data folder and outlives a switch."""

    history: SwitchHistory
    prompt_cache: PromptCache
    learned_store: LearnedStore
    estimates: EstimatesStore
    schedule: ScheduleStore

    def apply(self, settings: SwitchSettings) -> None:
        """Hold what comes from now on to other bounds."""
        self.history.size = settings.history_size
        self.prompt_cache.max_bytes = settings.prompt_cache_max_bytes
        self.prompt_cache.keeps_at_exit = settings.keep_prompt_cache_at_exit


def open_stores(
    settings: SwitchSettings, data: DataFolder, owned: AsyncExitStack, impairments: Impairments
) -> Stores:
    """Open what stands in the data folder; `owned` closes it."""
    history = SwitchHistory(data.store(HISTORY), settings.history_size, impairments)
    owned.callback(history.close)
    prompt_cache = PromptCache(
        data.subfolder("prompt-cache"),
        max_bytes=settings.prompt_cache_max_bytes,
        keeps_at_exit=settings.keep_prompt_cache_at_exit,
    )
    owned.callback(prompt_cache.close)
    learned_store = LearnedStore(data.store(LEARNED_NEEDS_FILE), impairments)
    owned.callback(learned_store.close)
    return Stores(
        history=history,
        prompt_cache=prompt_cache,
        learned_store=learned_store,
        estimates=EstimatesStore(data.path / ESTIMATES_FILE, impairments),
        schedule=ScheduleStore(data.path / SCHEDULE_FILE, impairments),
    )
