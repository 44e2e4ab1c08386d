"""The llama-cpp-python engine: `python -m llama_cpp.server`, from the extra `llama-cpp-python`.

It serves one sequence at a time on one context, over TCP only, and has no routes for health, slots
and metrics. Its settings are also read from variables of the same name (`HOST`, `MODEL`, `SEED` …),
and some of these win over the command line: the child gets none of them but ours.

Source: llama_cpp/server of llama-cpp-python 0.3.36.
"""

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from supervisor.config.configuration import ResolvedModel
from supervisor.config.profile import Profile
from supervisor.core.machine.values import Mode
from supervisor.core.sizing.ggml_types import GGML_TYPES
from supervisor.engine.kinds.arguments import Argument, read_arguments
from supervisor.engine.kinds.cached_build import cached_llama_server
from supervisor.engine.kinds.environment import inherited_environment
from supervisor.engine.kinds.flag_table import field_remedy
from supervisor.engine.kinds.flags import ArgumentReading, unhonoured
from supervisor.engine.kinds.program_output import ProgramOutputs, package_file, read_help
from supervisor.engine.port import Abilities, EngineIdentity, ServerStart, TokenizeRoute
from supervisor.errors import EngineError, UnfitProfile

NAME = "llama-cpp-python"
PACKAGE = "llama_cpp"
REMEDY = "pip install 'llama-supervisor[llama-cpp-python]'"

LIBRARY_VARIABLE = "LLAMA_CPP_LIB_PATH"
"""Names the folder with libllama.so, where the package has none of its own."""

HONOURED = frozenset(
    {
        *("ctx_size", "batch_size", "ubatch_size", "cache_type_k", "cache_type_v"),
        *("flash_attn", "n_gpu_layers", "load_mode", "threads", "extra_args"),
        *("parallel", "kv_unified", "cache_ram_mib", "ctx_checkpoints", "cache_reuse", "fit"),
        "keep_prompt_cache",
    }
)
"""What it can honour; some of these with one value only (`_FIXED`, `_REFUSED`).

Of checkpoints there may be so many: it makes none.
"""

_FIXED = {
    "parallel": (1, "it serves one sequence at a time"),
    "cache_ram_mib": (0, "it does not keep the prompts of idle slots"),
    "cache_reuse": (0, "it does not shift cached chunks"),
    "fit": (False, "it never fits itself to free memory"),
    "keep_prompt_cache": (False, "it cannot save its prompt cache"),
}
_REFUSED = {
    "flash_attn": ("auto", "on or off"),
    "n_gpu_layers": ("auto", "all or a number"),
    "load_mode": ("dio", "auto, none, mmap, mlock or mmap+mlock"),
}
_LOAD_MODES = {  # use_mmap, use_mlock
    "auto": ("true", "false"),
    "mmap": ("true", "false"),
    "none": ("false", "false"),
    "mlock": ("false", "true"),
    "mmap+mlock": ("true", "true"),
}
_FIELDS = {
    "n_ctx": "ctx_size",
    "n_batch": "batch_size",
    "n_ubatch": "ubatch_size",
    "type_k": "cache_type_k",
    "type_v": "cache_type_v",
    "flash_attn": "flash_attn",
    "n_threads": "threads",
    "n_threads_batch": "threads",
    "n_gpu_layers": "n_gpu_layers",
    "use_mmap": "load_mode",
    "use_mlock": "load_mode",
}
"""The options that a profile's fields become, with the field of each."""
_TAKEN_AWAY = {
    **dict.fromkeys(
        ("--model", "--hf_model_repo_id"),
        "the model's `path` in models.yaml decides what is served; write it there",
    ),
    "--model_alias": "the name in models.yaml decides it",
    "--embedding": "the model's `type` in models.yaml decides it; write it there",
    **dict.fromkeys(("--host", "--port"), "the controller chooses where it listens; leave it out"),
    "--api_key": "each start has a key of its own, which only the controller knows; leave it out",
    "--root_path": "the controller asks for its routes at /; leave it out",
    **dict.fromkeys(
        ("--ssl_keyfile", "--ssl_certfile"),
        "the controller reaches it on this machine without TLS; leave it out, and put a proxy "
        "that speaks TLS in front of the controller",
    ),
    "--config_file": "it would replace the whole command line; write the fields of the profile",
    "--interrupt_requests": "each request would cut off the answer to the one before; leave it out",
    **dict.fromkeys(("--help", "-h"), "the server prints something and ends; leave it out"),
    **{f"--{option}": field_remedy(field) for option, field in _FIELDS.items()},
    **dict.fromkeys(
        ("--split_mode", "--tensor_split", "--main_gpu"),
        "it divides no layers over several GPUs; write the field device for another one",
    ),
}
"""Options that would take from us what the controller relies on, with what to do instead."""
_SEQUENCES = 256  # llama_max_parallel_sequences(): what it makes room for when it embeds
_TYPE_NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}


class LlamaCppPython:
    """Runs the package's server in the Python that runs us, on a loopback port."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._outputs = ProgramOutputs()

    @property
    def identity(self) -> EngineIdentity:
        """The package's version, where it is, and the libraries that it loads."""
        try:
            package_version = version("llama_cpp_python")
        except PackageNotFoundError:
            return EngineIdentity(name=NAME, location=PACKAGE, version="not installed")
        libraries = self._library_dir()
        return EngineIdentity(
            name=NAME,
            location=str(_package_dir()),
            version=package_version,
            build=f"libraries in {libraries}" if libraries else "",
            devices=_backends_in(libraries) if libraries else (),
            problem=None if libraries else _NO_LIBRARY,
        )

    def abilities(self, resolved: ResolvedModel) -> Abilities:
        """Return what its server can do, whatever the model."""
        _ = resolved
        return Abilities(
            readiness_path="/v1/models",
            tokenize=TokenizeRoute(path="/extras/tokenize", text_field="input"),
            takes_request_id=False,
            chooses_flash_attention=False,
            runs_gguf_only=True,
            api_key_variable="API_KEY",
        )

    def check(self, resolved: ResolvedModel) -> None:
        """Raise UnfitProfile for what it cannot honour, EngineError when it cannot run."""
        if package_file(PACKAGE) is None:
            raise EngineError(f"{NAME} is not installed: {REMEDY}")
        if self._library_dir() is None:
            raise EngineError(_NO_LIBRARY)
        problems = (
            unhonoured(NAME, resolved.profile, HONOURED)
            | _value_problems(resolved.profile)
            | _batch_problems(resolved)
        )
        if resolved.projector_path is not None:
            problems["engine"] = (
                f"{NAME} cannot take a multimodal projector ({resolved.projector_path}); use "
                "engine: llama-server"
            )
        if resolved.tokenizer_path is not None:
            problems["engine"] = (
                f"{NAME} takes no token ids: {resolved.tokenizer_path.name} would be passed over, "
                f"and '{resolved.name}' would make other vectors than it means, in Korean useless "
                "ones; use engine: llama-server, or leave out `tokenizer` where llama.cpp's own is "
                "right for all texts"
            )
        problem = self._arguments().problem(resolved.profile.extra_args)
        if problem is not None:
            problems["extra_args"] = problem
        taken = {_variable(flag): remedy for flag, remedy in _TAKEN_AWAY.items()}
        for name in sorted(resolved.profile.env.keys() & taken.keys()):
            problems["env"] = f"{name} cannot be set here: {taken[name]}"
        if problems:
            raise UnfitProfile(resolved.profile_name, problems)

    def argv(self, start: ServerStart) -> tuple[str, ...]:
        """Return the command line that serves the model at the address."""
        resolved = start.model
        self.check(resolved)
        profile = resolved.profile
        settings = {
            "model": str(resolved.path),
            "model_alias": resolved.name,
            "host": "127.0.0.1",
            "port": str(start.address.port),
            **_context_settings(profile),
            **_device_settings(profile),
            "embedding": _word(value=resolved.mode is Mode.EMBEDDING),
            # Else it keeps the logits of every token of the context in host memory.
            "logits_all": "false",
            # Else the next request ends a stream as if it were complete.
            "interrupt_requests": "false",
        }
        words = (word for name, value in settings.items() for word in (f"--{name}", value))
        module = "llama_cpp.server"
        further = read_arguments(profile.extra_args, self._value_count, _as_written)
        extra = (word for each in further for word in _for_argparse(each))
        return (sys.executable, "-P", "-m", module, *words, *extra)

    def environment(self, start: ServerStart, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return what the child inherits without the server's settings, and those that it needs."""
        settings = {_variable(flag) for flag in read_help(self._help())}
        kept = {name: value for name, value in inherited.items() if name.upper() not in settings}
        return {
            **kept,
            **self._library_environment(),
            **start.model.profile.env,
            "HOST": "127.0.0.1",
            "PORT": str(start.address.port),
            "API_KEY": start.api_key,
        }

    def _arguments(self) -> ArgumentReading:
        return ArgumentReading(
            program=NAME,
            count_of=self._value_count,
            instead=_TAKEN_AWAY.get,
            otherwise="use another engine",
            spell=_as_written,
        )

    def _value_count(self, flag: str) -> int | None:
        entry = read_help(self._help()).get(flag)
        return None if entry is None else entry.value_count

    def _help(self) -> str:
        """Return the help of its server; every option in it is a variable, too."""
        # The help holds characters that not every locale can print.
        inherited = inherited_environment(self._environ, self._library_environment())
        environ = {**inherited, "PYTHONUTF8": "1"}
        argv = (sys.executable, "-P", "-m", "llama_cpp.server", "--help")
        return self._outputs.of(argv, _package_dir() / "__init__.py", environ)

    def _library_environment(self) -> dict[str, str]:
        folder = self._library_dir()
        is_own = folder is not None and folder == _package_dir() / "lib"
        return {} if folder is None or is_own else {LIBRARY_VARIABLE: str(folder)}

    def _library_dir(self) -> Path | None:
        """Return the folder of libllama.so: the one that is named, the package's, the cached build.

        None when there is none of them.
        """
        named = self._environ.get(LIBRARY_VARIABLE)
        if named:
            return Path(named)
        own = _package_dir() / "lib"
        if any(own.glob("libllama.*")):
            return own
        built = cached_llama_server()
        return built.parent if built else None


def _variable(flag: str) -> str:
    """Return the variable that stands for an option of its server."""
    return flag.removeprefix("--").upper()


def _as_written(flag: str) -> str:
    return flag  # its options have underscores, and no other spelling


def _for_argparse(argument: Argument) -> tuple[str, ...]:
    """Write an argument so that a value may begin with a dash."""
    if argument.is_joined or (argument.value_count == 1 and argument.values[0].startswith("-")):
        return (f"{argument.written}={argument.values[0]}",)
    return (argument.written, *argument.values)


_NO_LIBRARY = (
    f"{NAME} has no libllama.so: install it without CMAKE_ARGS=-DLLAMA_BUILD=OFF, name the folder "
    f"with {LIBRARY_VARIABLE}, or run scripts/build_llama_server.py"
)


def _package_dir() -> Path:
    file = package_file(PACKAGE)
    return file.parent if file else Path(PACKAGE)


def _backends_in(folder: Path) -> tuple[str, ...]:
    """Return the backends whose libraries are there: `cpu`, `cuda`, `hip`, `vulkan` and so on."""
    names = {path.name.split(".")[0] for path in folder.glob("libggml-*.so*")}
    return tuple(sorted(name.removeprefix("libggml-") for name in names - {"libggml-base"}))


def _context_settings(profile: Profile) -> dict[str, str]:
    settings = {
        "n_ctx": str(profile.ctx_size),
        "n_batch": str(profile.batch_size),
        "n_ubatch": str(profile.ubatch_size),
        "type_k": str(_TYPE_NUMBERS[profile.cache_type_k]),
        "type_v": str(_TYPE_NUMBERS[profile.cache_type_v]),
        "flash_attn": _word(value=profile.flash_attn == "on"),
    }
    if profile.threads is not None:
        settings |= dict.fromkeys(("n_threads", "n_threads_batch"), str(profile.threads))
    return settings


def _device_settings(profile: Profile) -> dict[str, str]:
    layers = 0 if profile.device == "cpu" else profile.n_gpu_layers
    use_mmap, use_mlock = _LOAD_MODES[profile.load_mode]
    return {
        "n_gpu_layers": str(layers if isinstance(layers, int) else -1),
        "use_mmap": use_mmap,
        "use_mlock": use_mlock,
    }


def _word(*, value: bool) -> str:
    return str(value).lower()


def _value_problems(profile: Profile) -> dict[str, str]:
    """Return the fields whose value is not one that it can take."""
    problems = {}
    for field, (only, reason) in _FIXED.items():
        value = getattr(profile, field)
        if value != only:
            wanted = f"{_shown(only)}, not {_shown(value)}"
            problems[field] = f"with {NAME} it must be {wanted}: {reason}"
    if profile.shares:
        problems["device"] = f"with {NAME} it must be one device: it divides no layers over several"
    for field, (refused, wanted) in _REFUSED.items():
        if field in profile.model_fields_set and getattr(profile, field) == refused:
            problems[field] = f"with {NAME} it must be {wanted}, not {refused}"
    return problems


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _batch_problems(resolved: ResolvedModel) -> dict[str, str]:
    """Return what makes it abort while it loads (GGML_ASSERT in llama.cpp's pooling).

    It embeds as many sequences at a time as a batch has tokens, 256 at most.
    """
    profile = resolved.profile
    batch = min(profile.batch_size, profile.ctx_size or profile.batch_size)
    ubatch, sequences = min(profile.ubatch_size, batch), min(batch, _SEQUENCES)
    if resolved.mode is not Mode.EMBEDDING or ubatch % sequences == 0:
        return {}
    wanted = f"a multiple of {sequences} for embedding, not {ubatch}"
    return {"ubatch_size": f"with {NAME} it must be {wanted}"}
