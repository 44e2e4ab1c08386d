"""What a profile says in fields is not said once more, and otherwise, in `extra_args`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.config.configuration import ResolvedModel
from supervisor.engine.kinds.embedded import EmbeddedEngine
from supervisor.engine.kinds.flag_table import SETTINGS, Flag
from supervisor.engine.kinds.llama_server import LlamaServer
from supervisor.engine.port import Engine
from supervisor.errors import UnfitProfile

ResolvedWith = Callable[..., ResolvedModel]


@pytest.fixture(params=["llama-server", "embedded"])
def server(request: pytest.FixtureRequest, llama_server_bin: Path) -> Engine:
    """Each real engine that takes llama-server's flags."""
    return LlamaServer(llama_server_bin) if request.param == "llama-server" else EmbeddedEngine()


@pytest.mark.parametrize(
    "flag",
    [flag for flag in SETTINGS if flag.field not in {"engine", "mode"}],
    ids=lambda flag: flag.name,
)
def test_what_is_a_field_is_not_given_as_a_further_argument(
    server: Engine, resolved_with: ResolvedWith, flag: Flag
) -> None:
    """The need is worked out from the fields, and the last argument would win."""
    for spelling in flag.spellings:
        with pytest.raises(UnfitProfile, match=rf"{spelling} cannot be given here: .*write "):
            server.check(resolved_with(extra_args=(spelling, "1")))


@pytest.mark.parametrize(
    ("extra", "remedy"),
    [
        (("-c", "32768"), "field ctx_size"),
        (("-np", "8"), "field parallel"),
        (("-ngl", "0"), "field n_gpu_layers"),
        (("-ctk", "f32"), "field cache_type_k"),
        (("-ctv", "f32"), "field cache_type_v"),
        (("-b", "4096"), "field batch_size"),
        (("-ub", "4096"), "field ubatch_size"),
        (("-fa", "off"), "field flash_attn"),
        (("-kvu",), "field kv_unified"),
        (("-no-kvu",), "field kv_unified"),
        (("-fit", "on"), "field fit"),
        (("-cram", "-1"), "field cache_ram_mib"),
        (("--no-mmap",), "field load_mode"),
        (("-dev", "none"), "field device"),
        (("--split_mode", "row"), "split mode layer"),
    ],
)
def test_short_and_older_spellings_of_fields_are_refused_too(
    llama_server_bin: Path, resolved_with: ResolvedWith, extra: tuple[str, ...], remedy: str
) -> None:
    with pytest.raises(UnfitProfile, match=remedy):
        LlamaServer(llama_server_bin).check(resolved_with(extra_args=extra))
