"""How one build of llama-server spells the flags that another build spells differently.

Builds differ in the flags that their help lists. A build that lacks a flag behaves as all builds
did before the flag came (`_BEFORE`): a value that equals this needs no words, another one cannot be
had, which is said with the field's name. What nobody wrote into the profile is left to the build.

| Field | Older builds |
|---|---|
| `flash_attn` | `--flash-attn` was a switch without a value, off by default |
| `load_mode` | `--no-mmap`, `--mlock` and `--direct-io` stood for it |
| `n_gpu_layers` | took a number only |
| `kv_unified` | each slot had its share of the context; then `--kv-unified` without a negation |
| `cache_ram_mib`, `cache_reuse`, `fit` | no prompt cache in host memory, no reuse, no fitting |
| `keep_prompt_cache` | slots could not be saved |
"""

from collections.abc import Mapping
from pathlib import Path

from supervisor.config.profile import Profile
from supervisor.engine.kinds.flags import Setting, flag_names
from supervisor.engine.kinds.probe import HelpEntry
from supervisor.errors import EngineError

ALL_LAYERS = "999"
"""More layers than any model has, for builds that take no word for all of them."""

_BEFORE = {
    "flash_attn": "off",
    "cache_ram_mib": 0,
    "cache_reuse": 0,
    "fit": False,
    "kv_unified": False,
    "keep_prompt_cache": False,
}
_LOAD_SWITCHES = {
    "auto": (),
    "mmap": (),
    "none": ("--no-mmap",),
    "mlock": ("--no-mmap", "--mlock"),
    "mmap+mlock": ("--mlock",),
    "dio": ("--direct-io",),
}
_DISPENSABLE = {"--metrics", "--alias"}
"""What older builds do without; their answers name the file as the model."""

_SYNONYMS = {"--embeddings": "--embedding", "--n-gpu-layers": "--gpu-layers"}


def lists_slots(entries: Mapping[str, HelpEntry]) -> bool:
    """Whether a build answers on `/slots` without being told to."""
    slots = entries.get("--slots")
    return slots is not None and "default: enabled" in slots.text


class Dialect:
    """The flags of one build, which stands at `binary` and printed `entries` as its help."""

    def __init__(self, binary: Path, entries: Mapping[str, HelpEntry]) -> None:
        self._binary = binary
        self._entries = entries

    def words(self, setting: Setting, profile: Profile) -> tuple[str, ...]:
        """Return a setting in this build's words. Raises EngineError when it has none for it."""
        special = {
            "flash_attn": self._flash_attention,
            "load_mode": self._load_mode,
            "kv_unified": self._unified_cache,
            "n_gpu_layers": self._gpu_layers,
            "extra_args": self._further,
            "keep_prompt_cache": self._slot_folder,
        }.get(setting.field, self._plain)
        return special(setting, profile)

    def _plain(self, setting: Setting, profile: Profile) -> tuple[str, ...]:
        flag, *values = setting.words
        for spelling in (flag, _SYNONYMS.get(flag, flag)):
            if spelling in self._entries:
                return (spelling, *values)
        if flag in _DISPENSABLE:
            return ()
        return self._unknown(setting, profile, flag)

    def _flash_attention(self, setting: Setting, profile: Profile) -> tuple[str, ...]:
        flag, value = setting.words
        entry = self._entries.get(flag)
        if entry is None:
            return self._unknown(setting, profile, flag)
        if entry.has_value:
            return setting.words
        if value == "auto" and "flash_attn" in profile.model_fields_set:
            raise EngineError(
                f"{self._binary} knows {flag} as a switch only; write on or off, or use a newer "
                "build"
            )
        return (flag,) if value == "on" else ()

    def _load_mode(self, setting: Setting, profile: Profile) -> tuple[str, ...]:
        flag, value = setting.words
        if flag in self._entries:
            return setting.words
        switches = _LOAD_SWITCHES[value]
        missing = [switch for switch in switches if switch not in self._entries]
        if missing:
            return self._unknown(setting, profile, f"{flag} and {', '.join(missing)}")
        return switches

    def _unified_cache(self, setting: Setting, profile: Profile) -> tuple[str, ...]:
        (flag,) = setting.words
        if flag in self._entries:
            return setting.words
        if not profile.kv_unified or profile.parallel == 1:  # one slot shares with nobody
            return ()
        return self._unknown(setting, profile, flag)

    def _gpu_layers(self, setting: Setting, profile: Profile) -> tuple[str, ...]:
        flag, value = self._plain(setting, profile)
        if value.isdigit() or "'all'" in self._entries[flag].text:
            return flag, value
        if value == "auto":
            raise EngineError(
                f"{self._binary} knows no auto for {flag}; write all or a number, or use a newer "
                "build"
            )
        return flag, ALL_LAYERS

    def _slot_folder(self, setting: Setting, profile: Profile) -> tuple[str, ...]:
        if lists_slots(self._entries):
            return self._plain(setting, profile)
        raise EngineError(
            f"{self._binary} does not list its slots unless told to; leave the field out, or use "
            "a newer build"
        )

    def _further(self, setting: Setting, _profile: Profile) -> tuple[str, ...]:
        unknown = [flag for flag in flag_names(setting.words) if flag not in self._entries]
        if unknown:
            raise EngineError(
                f"{self._binary} does not know {', '.join(unknown)}; correct it, or use another "
                "build"
            )
        return setting.words

    def _unknown(self, setting: Setting, profile: Profile, flag: str) -> tuple[str, ...]:
        """Leave out what changes nothing, or what nobody wrote; else say that it cannot be had."""
        field = setting.field
        if field not in _BEFORE:
            raise EngineError(f"{self._binary} does not know {flag}; use another build")
        is_written = field in profile.model_fields_set
        if is_written and getattr(profile, field) != _BEFORE[field]:
            raise EngineError(
                f"{self._binary} does not know {flag}; leave the field out, or use another build"
            )
        return ()
