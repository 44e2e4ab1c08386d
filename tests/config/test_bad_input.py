"""Every kind of bad input gets its own sentence, with the file and the line; exit code 2."""

import os
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from supervisor.cli import cli
from supervisor.config.load import load
from supervisor.config.scanned import FoundModel, Scan
from supervisor.core.machine.values import Mode
from supervisor.errors import ConfigError

GENERATION = "mode: generation\n"
EMBEDDING = "mode: embedding\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound configuration, for a test to spoil."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "generation.yaml").write_text(GENERATION)
    (folder / "embedding.yaml").write_text(EMBEDDING)
    (folder / "models.yaml").write_text("models:\n  chat:\n    path: chat.gguf\n")
    return folder


def problems(folder: Path, models_dir: Path | None = None, **environ: str) -> list[str]:
    """Load the folder; return what is wrong with it, paths written relative to it."""
    try:
        load(folder, models_dir or folder, environ)
    except ConfigError as error:
        return [problem.replace(f"{folder}/", "") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "generation.yaml",
            b"mode: generation\nmemory:\n\tmargin_bytes: 1\n",
            "generation.yaml:3: file: a tab indents this line; YAML takes spaces only",
        ),
        (
            "generation.yaml",
            b"mode: generation\nparallel: 1\nparallel: 2\n",
            "generation.yaml:3: parallel: is given twice, first on line 2; keep one",
        ),
        (
            "generation.yaml",
            b"mode: generation\nparallel: many\n",
            "generation.yaml:2: parallel: must be a whole number, not 'many'",
        ),
        (
            "generation.yaml",
            b"mode: generation\nparallel: -1\n",
            "generation.yaml:2: parallel: must be at least 1, not -1",
        ),
        (
            "generation.yaml",
            b"mode: generation\nstop_grace_s: -1s\n",
            "generation.yaml:2: stop_grace_s: must be at least 0, not -1.0",
        ),
        (
            "generation.yaml",
            b"mode: generation\nmemory: {margin_bytes: 12 parsecs}\n",
            (
                "generation.yaml:2: memory.margin_bytes: must be a size such as 16GiB, 512MiB or a "
                "number of bytes, not '12 parsecs'; the units are B, KiB, MiB, GiB, TiB, KB, MB, "
                "GB, TB"
            ),
        ),
        (
            "generation.yaml",
            b"mode: generation\nstop_grace_s: soon\n",
            (
                "generation.yaml:2: stop_grace_s: must be a duration such as 30s, 250ms, 5m or a "
                "number of seconds, not 'soon'"
            ),
        ),
        (
            "generation.yaml",
            b"mode: generation\nmemory:\n  # margin_bytes: 1\n",
            (
                "generation.yaml:2: memory: must be fields (`name: value`), not nothing; write "
                "them below it, or remove it"
            ),
        ),
        (
            "generation.yaml",
            b"mode: generation\nmemory:\n  margin_bytes:1\n",
            (
                "generation.yaml:2: memory: must be fields (`name: value`), not 'margin_bytes:1'; "
                "a space belongs behind the colon"
            ),
        ),
        (
            "generation.yaml",
            b"mode: generation\nparallel: yes\n",
            "generation.yaml:2: parallel: must be a number, not true",
        ),
        (
            "generation.yaml",
            b"mode: generation\nmain_gpu: no\n",
            "generation.yaml:2: main_gpu: must be a number, not false",
        ),
        (
            "generation.yaml",
            b"mode: generation\nextra_args: yes\n",
            "generation.yaml:2: extra_args: must be a list, not true",
        ),
        (
            "generation.yaml",
            b"mode: generation\nextra_args: ['a\n  b: c\n",
            (
                "generation.yaml:4: file: is not YAML: while scanning a quoted scalar (begun on "
                "line 2) found unexpected end of stream"
            ),
        ),
        (
            "generation.yaml",
            b"mode: generation\nparalel: 2\n",
            "generation.yaml:2: paralel: is not a known field; did you mean 'parallel'?",
        ),
        (
            "generation.yaml",
            b"mode: generation\nenv: {NAME: \xff}\n",
            "generation.yaml:2: file: byte 0xff is not UTF-8; save the file as UTF-8",
        ),
        (
            "generation.yaml",
            b"",
            "generation.yaml:1: file: is empty; write fields as `name: value`",
        ),
        (
            "generation.yaml",
            b"- mode\n",
            "generation.yaml:1: file: holds no fields; write them as `name: value`",
        ),
        (
            "generation.yaml",
            b"mode: generation\nextra_args: [--alias, '${NAME}']\n",
            (
                "generation.yaml:2: extra_args: variables are replaced in paths and secrets only; "
                "write the value itself"
            ),
        ),
        (
            "generation.yaml",
            b"mode: generation\nenv: {TOKEN: '${TOKEN}'}\n",
            (
                "generation.yaml:2: env.TOKEN: variable TOKEN is not set; set it, or write "
                "${TOKEN:-default}"
            ),
        ),
        *(
            (
                "generation.yaml",
                f"mode: generation\nenv: {{TOKEN: '{written}'}}\n".encode(),
                (
                    "generation.yaml:2: env.TOKEN: has ${TOKEN…} in a form that is not supported; "
                    "write ${TOKEN}, or ${TOKEN:-default} without another variable in it"
                ),
            )
            for written in (
                *("${TOKEN-x}", "a ${TOKEN:?unset}", "${TOKEN:+x}", "${TOKEN=x}"),
                *("${TOKEN:-${OTHER:-x}}", "${TOKEN:-x"),
            )
        ),
        *(
            (
                "generation.yaml",
                f"mode: generation\nenv: {{TOKEN: '{written}'}}\n".encode(),
                (
                    "generation.yaml:2: env.TOKEN: has a `${` that begins no variable; write "
                    "${NAME}, or ${NAME:-default}, and text that has one in it as the value of a "
                    "variable"
                ),
            )
            for written in ("${}", "${1}", "${TOKEN", "${TOKEN x}")
        ),
        (
            "generation.yaml",
            b"mode: generation\n1: 2\n",
            "generation.yaml:2: file: a field's name must be text, not 1; quote it",
        ),
        (
            "generation.yaml",
            b"mode: generation\nextends: generatio\n",
            (
                "generation.yaml:2: extends: there is no profile 'generatio'; did you mean "
                "'generation'?"
            ),
        ),
        (
            "generation.yaml",
            b"mode: generation\nextends: [generation]\n",
            "generation.yaml:2: extends: must be the name of one profile",
        ),
        (
            "models.yaml",
            b"models:\n  a: {path: a, aliases: [x]}\n  b: {path: b, aliases: [x]}\n",
            (
                "models.yaml:3: models.b.aliases: 'x' already names 'a'; a name can stand for one "
                "model only"
            ),
        ),
        (
            "models.yaml",
            b"models:\n  a:\n    path: a\n    profile: embedding\n",
            (
                "models.yaml:4: models.a.profile: 'embedding' is for embedding, and the model's "
                "type is generation; name another profile, or write `type: embedding`"
            ),
        ),
        (
            "models.yaml",
            b"models:\n  a: {type: generation}\n",
            "models.yaml:2: models.a.path: is missing; write it",
        ),
        (
            "models.yaml",
            b"models:\n  a: {path: a, type: embedding,\n    mmproj: b}\n",
            "models.yaml:3: models.a.mmproj: is for generation; leave it out",
        ),
        (
            "models.yaml",
            b"models:\n  a:\n    path: a\n    prompts: {query: 'query: '}\n",
            "models.yaml:4: models.a.prompts: is for embedding; leave it out",
        ),
        (
            "models.yaml",
            b"models:\n  a: {path: a, type: embedding, long_input: cut}\n",
            (
                "models.yaml:2: models.a.long_input: must be 'error', 'truncate' or 'window', not "
                "'cut'"
            ),
        ),
        (
            "models.yaml",
            b"models:\n  a: {path: a, type: embedding, matryoshka_dimensions: [0]}\n",
            "models.yaml:2: models.a.matryoshka_dimensions.0: must be more than 0, not 0",
        ),
        (
            "models.yaml",
            b"allowed_roots: [.]\nmodels:\n  a: {path: a, type: embedding, tokenizer: ../t}\n",
            (
                "models.yaml:3: models.a.tokenizer: {parent}/t lies outside allowed_roots "
                "({folder}); move it, or add its folder"
            ),
        ),
        (
            "models.yaml",
            b"allowed_roots: [inside]\nmodels:\n  a: {path: ../secret.gguf}\n",
            (
                "models.yaml:3: models.a.path: {parent}/secret.gguf lies outside allowed_roots "
                "(inside); move it, or add its folder"
            ),
        ),
        (
            "generation.yaml",
            b"mode: generation\nkv_unified: true\ncache_ram_mib: 64\nkeep_prompt_cache: true\n",
            (
                "generation.yaml:4: keep_prompt_cache: needs kv_unified: false or "
                "cache_ram_mib: 0; with one cache for all slots and a prompt cache in host memory, "
                "idle slots move there, and only one of several conversations would be saved"
            ),
        ),
        (
            "generation.yaml",
            b"mode: generation\ndevice: cpu\nmain_gpu: 1\n",
            "generation.yaml:3: main_gpu: is for device: gpu; leave it out",
        ),
        (
            "generation.yaml",
            b"mode: generation\ntensor_split: [1, 1]\nmain_gpu: 2\n",
            "generation.yaml:3: main_gpu: must be one of the 2 GPUs of tensor_split, from 0 on",
        ),
        (
            "generation.yaml",
            b"mode: embedding\nkeep_prompt_cache: true\n",
            (
                "generation.yaml:2: keep_prompt_cache: is for generation: embedding keeps no "
                "prompts; write false"
            ),
        ),
        (
            "generation.yaml",
            b"mode: generation\ngive_up_memory: park\n",
            (
                "generation.yaml:2: give_up_memory: park needs switch.cuda_checkpoint in "
                "supervisor.yaml for this engine; set that, or write stop"
            ),
        ),
        (
            "generation.yaml",
            (
                b"mode: generation\nengine: command\ncommand: {argv: [serve, '{port}']}\n"
                b"give_up_memory: park\n"
            ),
            (
                "generation.yaml:4: give_up_memory: park needs command.park, with engine: command; "
                "write it, or stop"
            ),
        ),
        (
            "generation.yaml",
            (
                b"mode: generation\nengine: command\ncommand:\n  argv: [serve, '{port}']\n"
                b"  park: {sleep: sleep, wake: /wake, is_asleep: /asleep}\n"
            ),
            "generation.yaml:5: command.park.sleep: must begin with /, as in /health, not 'sleep'",
        ),
        (
            "generation.yaml",
            b"mode: generation\nfallback_profile: generatoin\n",
            (
                "generation.yaml:2: fallback_profile: there is no profile 'generatoin'; did you "
                "mean 'generation'?"
            ),
        ),
        (
            "models.yaml",
            b"default_model: chatt\nmodels:\n  chat: {path: a}\n",
            "models.yaml:1: default_model: there is no model 'chatt'; did you mean 'chat'?",
        ),
        (
            "models.yaml",
            b"models:\n  chat: {path: a, overrides: {mode: embedding}}\n",
            (
                "models.yaml:2: models.chat.overrides.mode: cannot be overridden; choose another "
                "profile"
            ),
        ),
        (
            "supervisor.yaml",
            b"server: {prot: 1}\n",
            "supervisor.yaml:1: server.prot: is not a known field; did you mean 'port'?",
        ),
    ],
)
def test_bad_file_is_refused_with_line_and_remedy(
    folder: Path, name: str, content: bytes, problem: str
) -> None:
    (folder / name).write_bytes(content)

    places = {"{parent}": str(folder.parent), "{folder}": str(folder)}
    for placeholder, place in places.items():
        problem = problem.replace(placeholder, place)
    assert problems(folder) == [problem]


def test_circle_of_profiles_is_named(folder: Path) -> None:
    (folder / "generation.yaml").write_text("extends: base\n")
    (folder / "base.yaml").write_text("extends: generation\nmode: generation\n")

    assert (
        "base.yaml:1: extends: leads back to itself (generation → base → generation); "
        "remove one of these" in problems(folder)
    )


def test_anchor_that_refers_to_itself_is_named(folder: Path) -> None:
    (folder / "generation.yaml").write_text("mode: generation\nenv: &a {b: *a}\n")

    assert "generation.yaml:2: env.b: refers to itself through an anchor; write it out" in problems(
        folder
    )


def test_billion_laughs_end_at_once(folder: Path) -> None:
    lines = ["mode: generation", "env: &a0 {lol: lol}"]
    lines += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (folder / "generation.yaml").write_text("\n".join(lines))

    found = problems(folder)

    assert any("anchors repeat more than 100000 values; write less" in p for p in found)


def test_folder_without_a_catalogue_is_refused(folder: Path) -> None:
    (folder / "models.yaml").unlink()

    (problem,) = problems(folder)
    assert problem.startswith("models.yaml:1: file: is not there, and names the models; write it")


def test_every_problem_of_every_file_is_named_at_once(folder: Path) -> None:
    (folder / "generation.yaml").write_text("mode: generation\nparallel: 0\nbatch_sise: 1\n")
    (folder / "models.yaml").write_text("models:\n  a: {}\n  b: {path: b, type: chat}\n")
    (folder / "supervisor.yaml").write_text("server: {port: 70000}\n")

    assert sorted(problems(folder)) == [
        "generation.yaml:2: parallel: must be at least 1, not 0",
        "generation.yaml:3: batch_sise: is not a known field; did you mean 'batch_size'?",
        "models.yaml:2: models.a.path: is missing; write it",
        "models.yaml:3: models.b.type: must be 'generation' or 'embedding', not 'chat'",
        "supervisor.yaml:1: server.port: must be at most 65535, not 70000",
    ]


def test_no_model_is_compared_with_every_other(folder: Path) -> None:
    """Ten times as many take ten times as long, and not a hundred times."""

    def cpu_s(count: int) -> float:
        entries = {f"m{n}": {"path": f"m{n}.gguf", "aliases": [f"a{n}"]} for n in range(count)}
        (folder / "models.yaml").write_text(yaml.safe_dump({"models": entries}))
        started_at = time.process_time()
        configuration = load(folder, folder, {})
        assert configuration.model_name(f"a{count - 1}") == f"m{count - 1}"
        return time.process_time() - started_at

    assert cpu_s(5_000) < 40 * cpu_s(500)


def test_model_that_inherits_by_profile_and_override(folder: Path) -> None:
    (folder / "long.yaml").write_text(
        "extends: generation\nctx_size: 9\nmemory: {margin_bytes: 1MiB}\n"
    )
    (folder / "models.yaml").write_text(
        "models:\n  a:\n    path: ${ROOT:-/models}/a.gguf\n    profile: long\n"
        "    overrides: {memory: {stable_samples: 5}}\n"
    )

    resolved = load(folder, folder, {"ROOT": "/srv"}).resolve("a")

    assert resolved.path == Path("/srv/a.gguf")
    assert resolved.profile.ctx_size == 9
    assert resolved.profile.memory.margin_bytes == 1024 * 1024
    assert resolved.profile.memory.stable_samples == 5


def test_scanned_model_does_not_hide_one_that_an_entry_names(folder: Path) -> None:
    (folder / "models.yaml").write_text(
        "models_dir: .\nmodels:\n  chat: {path: chat.gguf, aliases: [mine]}\n"
    )
    found = [
        FoundModel(name="chat-file", path=folder / "chat.gguf", mode=Mode.GENERATION),
        FoundModel(name="more", path=folder / "more.gguf", mode=Mode.EMBEDDING),
    ]

    configuration = load(folder, folder, {}, lambda _: Scan(models=tuple(found)))

    assert sorted(configuration.catalogue.models) == ["chat", "more"]
    assert configuration.resolve("more").profile_name == "embedding"


@pytest.fixture
def run_check(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, llama_server_bin: Path
) -> "CheckRunner":
    monkeypatch.setenv("LLAMA_SERVER_BIN", str(llama_server_bin))
    return CheckRunner(models_dir)


class CheckRunner:
    """Runs `llama-supervisor check` in this process."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir

    def __call__(self, folder: Path, *arguments: str) -> tuple[int, list[str]]:
        result = CliRunner().invoke(
            cli, ["check", str(folder), "--models", str(self._models_dir), *arguments]
        )
        return result.exit_code, result.output.replace(f"{folder}/", "").splitlines()


def test_check_of_the_shipped_profiles_finds_nothing(
    run_check: CheckRunner, profiles_dir: Path
) -> None:
    code, lines = run_check(profiles_dir)

    assert (code, lines) == (0, [f"{profiles_dir}: 3 models, 3 profiles, no problems"])


def test_check_names_what_is_wrong_with_model_files(
    run_check: CheckRunner, folder: Path, tmp_path: Path, models_dir: Path
) -> None:
    unreadable = tmp_path / "fifo.gguf"
    os.mkfifo(unreadable)
    (folder / "models.yaml").write_text(
        f"models:\n  gone: {{path: gone.gguf}}\n  dir: {{path: {tmp_path}}}\n"
        f"  fifo: {{path: {unreadable}}}\n"
    )

    code, lines = run_check(folder)

    assert code == 2
    assert lines == [
        f"models.yaml:2: models.gone.path: {models_dir}/gone.gguf: there is no such file",
        f"models.yaml:3: models.dir.path: {tmp_path}: it is a folder; name the model's .gguf file",
        (
            f"models.yaml:4: models.fifo.path: {unreadable}: it is not a regular file; name the "
            "model's .gguf file"
        ),
    ]


def test_check_names_a_flag_that_the_engine_does_not_know(
    run_check: CheckRunner, folder: Path
) -> None:
    (folder / "generation.yaml").write_text("mode: generation\nextra_args: [--no-such-flag]\n")
    (folder / "models.yaml").write_text("models:\n  chat: {path: demo-chat.gguf}\n")

    code, lines = run_check(folder)

    assert code == 2
    assert "--no-such-flag" in lines[0]


def test_variable_that_is_empty_is_told_as_empty(folder: Path) -> None:
    (folder / "generation.yaml").write_text("mode: generation\nenv: {TOKEN: '${TOKEN}'}\n")

    assert problems(folder, TOKEN="") == [
        "generation.yaml:2: env.TOKEN: variable TOKEN is empty; fill it, or write ${TOKEN:-default}"
    ]


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("fast.yml", "fast.yaml"),
        ("fast.YAML", "fast.yaml"),
        ("fast.Yml", "fast.yaml"),
        ("supervisor.YML", "supervisor.yaml"),
    ],
)
def test_file_with_another_ending_is_not_passed_over(folder: Path, name: str, right: str) -> None:
    (folder / name).write_text("extends: generation\n")

    assert problems(folder) == [f"{name}:1: file: is not read; rename it {right}"]


def test_explain_tells_where_each_value_comes_from(run_check: CheckRunner, folder: Path) -> None:
    (folder / "base.yaml").write_text("mode: generation\nparallel: 2\nenv: {TOKEN: '${HOME}'}\n")
    (folder / "generation.yaml").write_text("extends: base\nbatch_size: 64\n")
    (folder / "models.yaml").write_text(
        "models:\n  chat:\n    path: demo-chat.gguf\n    overrides:\n      ctx_size: 256\n"
    )

    code, lines = run_check(folder, "--explain", "chat")

    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line}
    assert code == 0
    assert told["parallel"].split() == ["2", "profile,", "base.yaml:2"]
    assert told["batch_size"].split() == ["64", "profile,", "generation.yaml:2"]
    assert told["ctx_size"].split() == ["256", "model,", "models.yaml:5"]
    assert told["ubatch_size"].split() == ["512", "default"]
    assert told["env.TOKEN"].split() == [
        "${HOME}",
        "profile,",
        "base.yaml:3,",
        "environment",
        "HOME",
    ]
    assert "--parallel 2" in lines[-1]
    assert "--ctx-size 512" in lines[-1]


def test_explain_names_the_variables_that_the_server_does_not_inherit_and_not_their_values(
    run_check: CheckRunner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "swordfish")
    monkeypatch.setenv("HF_TOKEN", "swordfish")
    (folder / "generation.yaml").write_text("mode: generation\nenv_passthrough: [HF_*]\n")
    (folder / "models.yaml").write_text("models:\n  chat:\n    path: demo-chat.gguf\n")

    code, lines = run_check(folder, "--explain", "chat")

    [withheld] = [line for line in lines if line.startswith("not passed on")]
    assert code == 0
    assert "DATABASE_PASSWORD" in withheld
    assert not {"HF_TOKEN", "PATH"} & set(withheld.replace(",", "").split())
    assert "swordfish" not in "\n".join(lines)


def test_explain_of_an_unknown_model_names_the_known_ones(
    run_check: CheckRunner, profiles_dir: Path
) -> None:
    code, lines = run_check(profiles_dir, "--explain", "nobody")

    assert code == 2
    assert lines == ["there is no model 'nobody'; there are: bench-chat, demo-chat, minilm"]
