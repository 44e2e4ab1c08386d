"""The `command` engine: another server's command line, its placeholders, and what may be wrong."""

import json
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from pydantic import ValidationError

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.config.holder import ConfigurationHolder
from supervisor.config.load import load
from supervisor.core.machine.values import Mode, Target
from supervisor.engine.kinds.command import CommandEngine
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.launcher import Launcher
from supervisor.engine.model_check import model_problems
from supervisor.engine.port import Address, ServerStart
from supervisor.errors import ConfigError, EngineError, ModelFileError, UnfitProfile
from tests.conftest import ROOT, RunningController

Resolved = Callable[..., ResolvedModel]
StartController = Callable[..., Awaitable[RunningController]]

EMBEDDING_SERVER = Path(__file__).with_name("embedding_server.py")
PORT = Address(port=4711)


@pytest.fixture
def engine() -> CommandEngine:
    return CommandEngine(os.environ)


@pytest.fixture
def hashed(tmp_path: Path) -> Path:
    """A model that is a folder: what the test's embedding server loads."""
    folder = tmp_path / "hashed-ngrams"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dimensions": 256, "ngram": 3}))
    return folder


@pytest.fixture
def commanded(resolved_with: Resolved, hashed: Path) -> Resolved:
    """A model that runs with a command; `variables` are its section's, the rest the profile's."""

    def build(*argv: str, variables: dict[str, str] | None = None, **fields: Any) -> ResolvedModel:
        command = {"argv": (sys.executable, *argv), "env": variables or {}}
        return resolved_with(path=hashed, engine="command", command=command, **fields)

    return build


def section(*listen: str, **changes: Any) -> dict[str, Any]:
    """The `command` section that starts the test's embedding server."""
    names = ("--served-model-name", "{aliases}")
    return {
        "argv": [sys.executable, str(EMBEDDING_SERVER), "--model", "{model}", *listen, *names],
        "env": {"EMBEDDER_KEY": "{api_key}"},
        "readiness_path": "/info/ready",
        "readiness_status": 204,
        "stop_signal": "SIGINT",
        **changes,
    }


def profile(*listen: str, **changes: Any) -> dict[str, Any]:
    return {
        "mode": "embedding",
        "engine": "command",
        "command": section(*listen),
        "memory": {"need_bytes": "64MiB"},
        "start_timeout_s": 60,
        "stop_grace_s": 60,
        **changes,
    }


def folder_of(tmp_path: Path, profile_fields: dict[str, Any], **entry: Any) -> Path:
    """A configuration with one model, `mine`, that runs with the profile `other`."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "other.yaml").write_text(yaml.safe_dump(profile_fields, sort_keys=False))
    entry = {"type": "embedding", "profile": "other", **entry}
    (folder / "models.yaml").write_text(yaml.safe_dump({"models": {"mine": entry}}))
    return folder


# Placeholders


def test_placeholders_are_filled_in(
    engine: CommandEngine, commanded: Resolved, hashed: Path
) -> None:
    model = commanded(
        *("{model}", "--port={port}", "{alias}", "{aliases}", "{profile.ctx_size}"),
        *("{profile.kv_unified}", "{profile.device}:{profile.ctx_size}"),
        variables={"KEY": "{api_key}", "AT": "127.0.0.1:{port}"},
        ctx_size=512,
        kv_unified=True,
        extra_args=("--further",),
    )
    assert engine.argv(ServerStart(model=model, address=PORT, api_key="the-key")) == (
        *(sys.executable, str(hashed), "--port=4711", "mine", "mine", "our", "own"),
        *("512", "true", "gpu:512", "--further"),
    )
    environment = engine.environment(
        ServerStart(model=model, address=PORT, api_key="the-key"), {"HOME": "/root"}
    )
    assert environment == {"HOME": "/root", "KEY": "the-key", "AT": "127.0.0.1:4711"}
    assert engine.abilities(model).api_key_variable == "KEY"


def test_a_socket_is_handed_over_where_the_command_asks_for_one(
    engine: CommandEngine, commanded: Resolved
) -> None:
    model = commanded("--uds", "{socket}")
    assert engine.abilities(model).has_unix_socket
    address = Address(socket_path=Path("/run/ours/backend-1.sock"))
    assert engine.argv(ServerStart(model=model, address=address))[1:] == (
        "--uds",
        "/run/ours/backend-1.sock",
    )
    assert not engine.abilities(commanded("{port}")).has_unix_socket


def test_other_braces_stand_for_themselves(engine: CommandEngine, commanded: Resolved) -> None:
    words = ('{"temperature": 0.5, "a": {}}', "{}", "${", "{A}", "{1}")
    assert engine.argv(ServerStart(model=commanded("{port}", *words), address=PORT))[2:] == words


def test_the_sections_environment_goes_over_the_profiles(
    engine: CommandEngine, commanded: Resolved
) -> None:
    model = commanded("{port}", variables={"A": "section"}, env={"A": "profile", "B": "profile"})
    environment = engine.environment(
        ServerStart(model=model, address=PORT), {"B": "ours", "C": "ours"}
    )
    assert environment == {"A": "section", "B": "profile", "C": "ours"}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("{prot}", "{prot} is not a placeholder; there are: {port}, {socket}, {model}, {alias}, "),
        ("{profile.ctxsize}", "did you mean 'profile.ctx_size'"),
        ("{profile.memory.need_bytes}", "is not a placeholder"),
    ],
)
def test_an_unknown_placeholder_is_an_error_that_names_the_known_ones(
    tmp_path: Path, word: str, told: str
) -> None:
    folder = folder_of(tmp_path, profile("--port", "{port}", word), path="x")
    with pytest.raises(ConfigError) as refused:
        load(folder, tmp_path, {})
    [problem] = refused.value.problems
    assert problem.startswith(f"{folder}/other.yaml:")
    assert told in problem


@pytest.mark.parametrize(
    ("listen", "fault"), [((), "are neither"), (("{port}", "{socket}"), "are both")]
)
def test_a_server_listens_on_a_port_or_on_a_socket(
    tmp_path: Path, listen: tuple[str, ...], fault: str
) -> None:
    folder = folder_of(tmp_path, profile(*listen), path="x")
    with pytest.raises(ConfigError, match=rf"other\.yaml:3: command: .*port.*socket.* {fault}"):
        load(folder, tmp_path, {})


def test_a_port_may_be_told_by_a_variable_alone(commanded: Resolved) -> None:
    assert commanded(variables={"PORT": "{port}"}).profile.command is not None


def test_a_readiness_path_begins_at_the_root(commanded: Resolved) -> None:
    with pytest.raises(ValidationError, match="must begin with /"):
        commanded("{port}").profile.model_validate(
            profile("{port}", command=section("{port}", readiness_path="health"))
        )


# What is refused


def problems_of(engine: CommandEngine, model: ResolvedModel) -> dict[str, str]:
    with pytest.raises(UnfitProfile) as refused:
        engine.check(model)
    return refused.value.problems


def test_fields_that_the_command_does_not_read_are_refused(
    engine: CommandEngine, commanded: Resolved
) -> None:
    model = commanded("{port}", "{profile.ctx_size}", ctx_size=512, parallel=1, fit=False)
    problems = problems_of(engine, model)
    assert problems.keys() == {"parallel", "fit"}
    assert "put {profile.parallel} into command.argv" in problems["parallel"]


def test_a_placeholder_without_a_value_is_refused(
    engine: CommandEngine, commanded: Resolved
) -> None:
    problems = problems_of(engine, commanded("{port}", "{profile.threads}"))
    assert problems == {"threads": "has no value for the command; write one"}


def test_a_command_needs_its_section(engine: CommandEngine, resolved_with: Resolved) -> None:
    problems = problems_of(engine, resolved_with(engine="command"))
    assert "needs a section" in problems["engine"]


def test_a_program_that_is_not_there_is_refused(
    engine: CommandEngine, resolved_with: Resolved, hashed: Path
) -> None:
    command = {"argv": ("no-such-server", "{port}")}
    problems = problems_of(engine, resolved_with(path=hashed, command=command))
    assert "no-such-server is not a program on PATH" in problems["command.argv"]


def test_a_section_for_another_engine_is_refused(
    resolved_with: Resolved, llama_server_bin: Path, hashed: Path
) -> None:
    model = resolved_with(path=hashed, engine="llama-server", command=section("{port}"))
    engines = Engines({}, llama_server_bin)
    for name in ("llama-server", "embedded", "llama-cpp-python"):
        with pytest.raises(UnfitProfile, match=f"command: the engine {name} cannot honour it"):
            engines.choose(name).check(model)


# Models that are no GGUF files


def launcher_for(configuration: Configuration, run_dir: Path) -> Launcher:
    return Launcher(
        configuration=ConfigurationHolder(configuration),
        engines=Engines(os.environ, None),
        run_dir=run_dir,
        device_env=lambda _: {},
    )


MINE = Target(model="mine", mode=Mode.EMBEDDING, profile="other", device="host")


@pytest.mark.parametrize("path", ["hashed-ngrams", "BAAI/bge-small-en-v1.5", "gpt2"])
def test_a_folder_or_a_hub_name_needs_what_the_profile_states(
    tmp_path: Path, run_dir: Path, hashed: Path, path: str
) -> None:
    folder = folder_of(tmp_path, profile("--port", "{port}"), path=path)
    configuration = load(folder, tmp_path, {})
    assert launcher_for(configuration, run_dir).check(MINE).footprint.total_bytes == 64 * 1024**2
    assert list(model_problems(configuration, Engines(os.environ, None))) == []
    argv = CommandEngine(os.environ).argv(
        ServerStart(model=configuration.resolve("mine"), address=PORT)
    )
    assert argv[3] == (str(hashed) if path == "hashed-ngrams" else path)


def test_a_need_that_nobody_can_tell_is_asked_for(
    tmp_path: Path, run_dir: Path, hashed: Path
) -> None:
    folder = folder_of(tmp_path, profile("{port}", memory={"margin_bytes": 0}), path=hashed.name)
    configuration = load(folder, tmp_path, {})
    with pytest.raises(
        EngineError, match=r"memory\.need_bytes: .*hashed-ngrams is not a GGUF file"
    ):
        launcher_for(configuration, run_dir).check(MINE)
    [problem] = model_problems(configuration, Engines(os.environ, None))
    line = (folder / "other.yaml").read_text().splitlines().index("memory:") + 1
    assert problem.startswith(f"{folder}/other.yaml:{line}: memory.need_bytes: ")


@pytest.mark.parametrize("path", ["/no/such/folder", "gone.gguf", "a/b/c"])
def test_a_model_that_is_nowhere_and_no_name_either_is_refused(
    tmp_path: Path, run_dir: Path, path: str
) -> None:
    folder = folder_of(tmp_path, profile("{port}"), path=path)
    configuration = load(folder, tmp_path, {})
    with pytest.raises(ModelFileError, match="there is no such file"):
        launcher_for(configuration, run_dir).check(MINE)


def test_a_gguf_file_is_looked_at_whatever_the_server(
    tmp_path: Path, run_dir: Path, models_dir: Path
) -> None:
    memory = {"margin_bytes": 0}
    folder = folder_of(tmp_path, profile("{port}", memory=memory), path="minilm.gguf")
    need = launcher_for(load(folder, models_dir, {}), run_dir).check(MINE)
    assert need.footprint.total_bytes > (models_dir / "minilm.gguf").stat().st_size


def test_an_engine_of_llama_cpp_takes_gguf_files_only(
    tmp_path: Path, hashed: Path, llama_server_bin: Path
) -> None:
    fields = {"mode": "embedding", "memory": {"need_bytes": 1}}
    configuration = load(folder_of(tmp_path, fields, path=hashed.name), tmp_path, {})
    for name in ("llama-server", "embedded", "llama-cpp-python"):
        [problem] = model_problems(configuration, Engines({}, llama_server_bin, name))
        assert "models.mine.path" in problem
        assert "it is a folder" in problem


# The documented examples


def documented() -> dict[str, str]:
    """The YAML files of the how-to, each heading's `models.yaml` under its profile's name."""
    text = (ROOT / "docs" / "how-to" / "other-engines.md").read_text()
    blocks = re.findall(r"`profiles/(\w+)\.yaml`:\n\n```yaml\n(.*?)```", text, re.DOTALL)
    return {f"{name}.{number // 2}": content for number, (name, content) in enumerate(blocks)}


@pytest.mark.parametrize(
    ("number", "profile_name", "words"),
    [
        (0, "vllm", "vllm serve Qwen/Qwen3-8B --uds /s --served-model-name qwen chat --max"),
        (1, "tei", "text-embeddings-router --model-id BAAI/bge-small-en-v1.5 --hostname 127.0.0.1"),
    ],
)
def test_the_documented_examples_can_be_used(
    tmp_path: Path, number: int, profile_name: str, words: str
) -> None:
    files = documented()
    folder = tmp_path / "profiles"
    folder.mkdir()
    for name in (profile_name, "models"):
        (folder / f"{name}.yaml").write_text(files[f"{name}.{number}"])
    configuration = load(folder, tmp_path, {})
    [model] = configuration.catalogue.models
    program = tmp_path / "bin" / words.split(maxsplit=1)[0]
    program.parent.mkdir()
    program.touch(mode=0o755)
    engine = CommandEngine({"PATH": str(program.parent)})
    address = Address(socket_path=Path("/s"), port=4711)
    assert " ".join(
        engine.argv(ServerStart(model=configuration.resolve(model), address=address))
    ).startswith(words)
    assert list(model_problems(configuration, Engines({"PATH": str(program.parent)}, None))) == []


# A real server


@pytest.mark.parametrize("listen", [("--port", "{port}"), ("--uds", "{socket}")])
async def test_another_server_is_switched_to_and_from(
    start_controller: StartController, hashed: Path, listen: tuple[str, ...]
) -> None:
    models = {
        "demo-chat": {"path": "demo-chat.gguf"},
        "hashed": {
            "path": str(hashed),
            "type": "embedding",
            "profile": "hashed",
            "aliases": ["ngrams"],
        },
    }
    controller = await start_controller(
        files={"models.yaml": {"models": models}, "hashed.yaml": profile(*listen)}
    )

    async def ask(path: str, **body: Any) -> Any:
        return await controller.json("POST", path, body)

    chat = {"model": "demo-chat", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    await controller.switch_to("demo-chat")
    assert (await ask("/v1/chat/completions", **chat))["choices"]

    await controller.switch_to("hashed")
    [backend] = (await controller.json("GET", "/status"))["backends"]
    texts = ["a cat sits on the mat", "the cat sat on a mat", "quarterly revenue grew"]
    answer = await ask("/v1/embeddings", model="ngrams", input=texts)
    one, near, far = (item["embedding"] for item in answer["data"])
    assert sum(a * b for a, b in zip(one, near, strict=True)) > 0.6
    assert sum(a * b for a, b in zip(one, far, strict=True)) < 0.3

    child = psutil.Process(backend["pid"])
    key = child.environ()["EMBEDDER_KEY"]
    assert len(key) >= 32
    assert key not in " ".join(child.cmdline())

    await controller.switch_to("demo-chat")
    assert not psutil.pid_exists(backend["pid"])
    last_exit = (await controller.json("GET", "/status"))["last_exit"]
    assert (last_exit["exit_code"], last_exit["signal"]) == (7, None), "SIGINT asked it to end"
    assert (await ask("/v1/chat/completions", **chat))["choices"]


def test_the_stop_signal_is_the_sections(engine: CommandEngine, commanded: Resolved) -> None:
    assert engine.abilities(commanded("{port}")).stop_signal is signal.SIGTERM
