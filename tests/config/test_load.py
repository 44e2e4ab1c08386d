"""The configuration folder: what is accepted, and that everything wrong is told at once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from supervisor.config.catalogue import LongInput
from supervisor.config.configuration import Configuration
from supervisor.config.load import load
from supervisor.core.machine.rules import DrainPolicy
from supervisor.core.machine.values import Mode
from supervisor.errors import ConfigError

MODELS = Path("/models")


class Folder:
    """A copy of the shipped configuration to be changed, and read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ: dict[str, str] = {}

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def change(self, name: str, edit: Callable[[Any], Any]) -> None:
        """Edit a YAML file as values."""
        content = yaml.safe_load((self.path / name).read_text())
        edit(content)
        self.write(name, yaml.safe_dump(content))

    def change_model(self, name: str, **fields: Any) -> None:
        self.change("models.yaml", lambda catalogue: catalogue["models"][name].update(fields))

    def load(self) -> Configuration:
        return load(self.path, MODELS, self.environ)

    def problems(self) -> list[str]:
        """Each problem, the folder's name left out."""
        with pytest.raises(ConfigError) as error:
            self.load()
        assert str(error.value) == "\n".join(error.value.problems)
        return [problem.removeprefix(f"{self.path}/") for problem in error.value.problems]

    def problem(self) -> str:
        [problem] = self.problems()
        return problem


@pytest.fixture
def folder(tmp_path: Path, profiles_dir: Path) -> Folder:
    return Folder(Path(shutil.copytree(profiles_dir, tmp_path / "profiles")))


# What is shipped


def test_the_shipped_configuration_is_accepted(profiles_dir: Path) -> None:
    configuration = load(profiles_dir, MODELS, {})
    assert set(configuration.profiles) == {"generation", "embedding", "embedding-cpu"}
    assert configuration.catalogue.default_model == "demo-chat"
    assert configuration.settings.server.host == "127.0.0.1"


def test_names_and_aliases_mean_a_model(profiles_dir: Path) -> None:
    configuration = load(profiles_dir, MODELS, {})
    assert configuration.model_name("minilm") == "minilm"
    assert configuration.model_name("all-MiniLM-L6-v2") == "minilm"
    assert configuration.model_name("nobody") is None


def test_a_model_runs_with_its_profile_under_its_overrides(profiles_dir: Path) -> None:
    resolved = load(profiles_dir, MODELS, {}).resolve("minilm")
    assert resolved.path == MODELS / "minilm.gguf"
    assert (resolved.mode, resolved.profile_name) == (Mode.EMBEDDING, "embedding")
    assert (resolved.profile.ctx_size, resolved.profile.ubatch_size) == (512, 2048)
    assert resolved.max_input_tokens == 256


def test_overrides_go_with_the_model_to_another_profile(profiles_dir: Path) -> None:
    resolved = load(profiles_dir, MODELS, {}).resolve("minilm", "embedding-cpu")
    assert (resolved.profile.device, resolved.profile.threads) == ("cpu", 2)
    assert resolved.profile.ctx_size == 512


# What a user writes


def test_an_entry_with_a_path_is_all_that_a_model_of_ones_own_needs(folder: Folder) -> None:
    folder.change("models.yaml", lambda c: c["models"].update(mine={"path": "/my/own.gguf"}))
    resolved = folder.load().resolve("mine")
    assert resolved.path == Path("/my/own.gguf")
    assert (resolved.mode, resolved.profile_name) == (Mode.GENERATION, "generation")


def test_an_embedding_model_has_its_tokens_prompts_and_lengths(folder: Folder) -> None:
    prompts = {"query": "query: ", "document": "passage: "}
    folder.change_model(
        "minilm",
        tokenizer="${TOKENIZERS:-e5}/tokenizer.json",
        prompts=prompts,
        long_input="window",
        matryoshka_dimensions=[64, 128],
    )
    resolved = folder.load().resolve("minilm")
    assert resolved.tokenizer_path == MODELS / "e5/tokenizer.json"
    assert (resolved.prompts, resolved.long_input) == (prompts, LongInput.WINDOW)
    assert resolved.matryoshka_dimensions == (64, 128)


@pytest.mark.parametrize(("flag", "mode"), [(True, Mode.EMBEDDING), (False, Mode.GENERATION)])
def test_the_older_spelling_of_the_type_is_understood(
    folder: Folder, *, flag: bool, mode: Mode
) -> None:
    old = {"path": "old.gguf", "embedding": flag}
    folder.change("models.yaml", lambda catalogue: catalogue["models"].update(old=old))
    assert folder.load().resolve("old").mode is mode


def test_the_two_spellings_of_the_type_may_not_contradict(folder: Folder) -> None:
    folder.change_model("demo-chat", embedding=True)
    assert "type says generation and embedding says embedding" in folder.problem()
    folder.change_model("demo-chat", embedding="perhaps")
    assert "embedding must be true or false" in folder.problem()


@pytest.mark.parametrize(
    ("written", "meant"), [("on", "on"), ("off", "off"), ('"on"', "on"), ("auto", "auto")]
)
def test_flash_attention_is_written_with_quotes_or_without(
    folder: Folder, written: str, meant: str
) -> None:
    """YAML 1.1 takes a bare `on` for true."""
    folder.write("mine.yaml", f"mode: generation\nflash_attn: {written}\n")
    assert folder.load().profiles["mine"].flash_attn == meant


def test_a_section_may_be_overridden_in_part(folder: Folder) -> None:
    folder.change_model("demo-chat", overrides={"memory": {"stable_samples": 9}})
    memory = folder.load().resolve("demo-chat").profile.memory
    assert memory.stable_samples == 9
    assert memory.margin_bytes == 256 * 1024 * 1024
    assert memory.policy().stable_samples == 9


def test_every_other_file_is_a_profile(folder: Folder) -> None:
    folder.write("long-context.yaml", "mode: generation\nctx_size: 100000\n")
    folder.write("notes.txt", "not a profile")
    folder.change_model("demo-chat", profile="long-context")
    assert folder.load().resolve("demo-chat").profile.ctx_size == 100_000


def test_without_supervisor_yaml_the_defaults_hold(folder: Folder) -> None:
    (folder.path / "supervisor.yaml").unlink()
    settings = folder.load().settings
    assert (settings.server.port, settings.queue.hold_max_requests) == (8000, 10_000)
    assert settings.devices == {}


def test_what_the_core_is_held_to_is_what_operators_wrote(folder: Folder) -> None:
    folder.change(
        "supervisor.yaml",
        lambda s: s.update(
            queue={"hold_max_requests": 10, "model_share": 0.25},
            scheduler={"policy": "fifo", "max_wait_s": "10s", "drain_policy": "cancel"},
        ),
    )
    limits, rules = folder.load().settings.limits(), folder.load().settings.rules()
    assert (limits.hold_max_requests, limits.hold_max_per_model) == (10, 3)
    assert (rules.scheduling.policy, rules.scheduling.max_wait_s) == ("fifo", 10.0)
    assert (rules.scheduling.switching_share, rules.manual_hold_s) == (0.15, 10.0)
    assert rules.scheduler_drains is DrainPolicy.CANCEL


def test_no_model_need_be_loaded_at_start(folder: Folder) -> None:
    folder.change("models.yaml", lambda catalogue: catalogue.pop("default_model"))
    assert folder.load().catalogue.default_model is None


def test_the_catalogue_may_stand_elsewhere(folder: Folder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "catalogue.yaml"
    elsewhere.write_text("models: {other: {path: other.gguf}}")
    folder.environ["MODEL_CONFIG_PATH"] = str(elsewhere)
    assert set(folder.load().catalogue.models) == {"other"}


def test_the_catalogue_may_have_another_name_in_the_same_folder(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However its path is spelled, it is not taken for a profile."""
    folder.write("catalogue.yaml", "models: {other: {path: other.gguf}}")
    monkeypatch.chdir(folder.path.parent)
    for spelling in (folder.path / "catalogue.yaml", "profiles/catalogue.yaml"):
        folder.environ["MODEL_CONFIG_PATH"] = str(spelling)
        assert set(folder.load().catalogue.models) == {"other"}
        assert "catalogue" not in folder.load().profiles


def test_a_folder_of_links_is_read_as_kubernetes_mounts_it(folder: Folder, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    (mounted / "..2026_01_01").mkdir(parents=True)
    for path in folder.path.glob("*.yaml"):
        shutil.copy(path, mounted / "..2026_01_01")
        (mounted / path.name).symlink_to(Path("..data") / path.name)
    (mounted / "..data").symlink_to("..2026_01_01")
    assert set(load(mounted, MODELS, {}).profiles) == {"generation", "embedding", "embedding-cpu"}


def test_a_link_to_settings_that_leads_nowhere_is_told(folder: Folder) -> None:
    (folder.path / "supervisor.yaml").unlink(missing_ok=True)
    (folder.path / "supervisor.yaml").symlink_to(folder.path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"supervisor\.yaml"):
        folder.load()


# What is wrong is told, all of it, with its place


def test_every_problem_of_every_file_is_told_at_once(folder: Folder) -> None:
    folder.change("models.yaml", lambda catalogue: catalogue.update(default_model="nobody"))
    folder.change_model("demo-chat", profile="no-such", pth="x")
    folder.change("generation.yaml", lambda p: p.update(parallel=0, cache_type_k="q3"))
    folder.change("embedding.yaml", lambda profile: profile.pop("mode"))
    folder.change("supervisor.yaml", lambda s: s.update(qeue={}, server={"port": 70000}))
    problems = folder.problems()
    for file, field in (
        ("models.yaml", "models.demo-chat.pth"),
        ("generation.yaml", "parallel"),
        ("generation.yaml", "cache_type_k"),
        ("embedding.yaml", "mode"),
        ("supervisor.yaml", "qeue"),
        ("supervisor.yaml", "server.port"),
    ):
        found = [p for p in problems if p.startswith(f"{file}:") and f": {field}: " in p]
        assert len(found) == 1, (file, field, problems)


def test_a_default_model_that_is_not_there_is_told(folder: Folder) -> None:
    folder.change("models.yaml", lambda catalogue: catalogue.update(default_model="demochat"))
    problem = folder.problem()
    assert problem.startswith("models.yaml:")
    assert ": default_model: there is no model 'demochat'" in problem
    assert "demo-chat" in problem


def test_a_default_model_that_resembles_none_is_told_with_those_that_are(folder: Folder) -> None:
    folder.change("models.yaml", lambda catalogue: catalogue.update(default_model="zzz"))
    assert "there are: bench-chat, demo-chat, minilm" in folder.problem()


def test_a_default_model_of_a_type_that_is_not_there_is_told(folder: Folder) -> None:
    folder.change("models.yaml", lambda c: c.update(default_models={"generation": "demochat"}))
    assert (
        ": default_models.generation: there is no model 'demochat'; did you mean 'demo-chat'?"
        in folder.problem()
    )


def test_a_default_model_of_the_other_type_is_told(folder: Folder) -> None:
    folder.change("models.yaml", lambda c: c.update(default_models={"embedding": "demo-chat"}))
    assert (
        ": default_models.embedding: 'demo-chat' is a model for generation; name one for embedding"
        in folder.problem()
    )


@pytest.mark.parametrize("alias", ["demo-chat", "chat"])
def test_a_name_stands_for_one_model_only(folder: Folder, alias: str) -> None:
    folder.change_model("minilm", aliases=[alias])
    assert f": models.minilm.aliases: '{alias}' already names 'demo-chat'" in folder.problem()


def test_a_model_may_repeat_its_own_name_as_an_alias(folder: Folder) -> None:
    folder.change_model("minilm", aliases=["minilm", "minilm-l6", "minilm-l6"])
    assert folder.load().model_name("minilm-l6") == "minilm"


def test_a_profile_that_is_not_there_is_told_with_those_that_are(folder: Folder) -> None:
    folder.change_model("demo-chat", profile="zzz")
    problem = folder.problem()
    assert ": models.demo-chat.profile: there is no profile 'zzz'" in problem
    assert "there are: embedding, embedding-cpu, generation" in problem


def test_a_profile_must_be_for_the_models_type(folder: Folder) -> None:
    folder.change_model("demo-chat", profile="embedding")
    problem = folder.problem()
    assert ": models.demo-chat.profile: " in problem
    assert "'embedding' is for embedding, and the model's type is generation" in problem


def test_overrides_are_checked_like_the_profile(folder: Folder) -> None:
    folder.change_model("demo-chat", overrides={"ctx_size": "large", "ctx": 1})
    assert sorted(p.split(": ")[1] for p in folder.problems()) == [
        "models.demo-chat.overrides.ctx",
        "models.demo-chat.overrides.ctx_size",
    ]


def test_the_mode_is_not_overridden_but_chosen_by_the_type(folder: Folder) -> None:
    folder.change_model("demo-chat", overrides={"mode": "embedding"})
    problem = folder.problem()
    assert ": models.demo-chat.overrides.mode: cannot be overridden" in problem


def test_an_unknown_type_is_told_with_the_known_ones(folder: Folder) -> None:
    folder.change_model("demo-chat", type="embeddings")
    problem = folder.problem()
    assert ": models.demo-chat.type: " in problem
    assert "'generation' or 'embedding'" in problem


# Files that cannot be read


@pytest.mark.parametrize("name", ["gpuO", "gpu-0", "gpu", "GPU0", "gpu01", "GPU-3f2a1b", "cpu"])
def test_settings_of_what_cannot_be_a_device_are_told(folder: Folder, name: str) -> None:
    folder.write("supervisor.yaml", f"devices:\n  {name}: {{exclusive: true}}\n")
    hint = "; the memory of the CPU is host" if name == "cpu" else ""
    assert folder.problem() == (
        f"supervisor.yaml:2: devices.{name}: must be host, or a GPU by its number, such as "
        f"gpu0{hint}"
    )


@pytest.mark.parametrize(
    "written",
    [
        "jobs: {file_days: .inf}",
        "jobs: {file_days: .nan}",
        "jobs: {file_days: 1.0e+300}",
        "jobs: {max_bytes: .inf}",
        "queue: {hold_timeout_s: .inf}",
        "queue: {p95_target_ms: .inf}",
        f"queue: {{hold_timeout_s: {'9' * 400}s}}",
        f"jobs: {{max_bytes: {'9' * 400}B}}",
    ],
)
def test_numbers_must_end(folder: Folder, written: str) -> None:
    folder.write("supervisor.yaml", written)
    assert "must be " in folder.problem()


def test_settings_may_name_the_host_and_any_gpu(folder: Folder) -> None:
    folder.write("supervisor.yaml", "devices: {host: {}, gpu0: {}, gpu12: {exclusive: true}}\n")
    assert sorted(folder.load().settings.devices) == ["gpu0", "gpu12", "host"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: there is no such folder; .*--profiles"):
        load(tmp_path / "none", MODELS, {})


def test_a_catalogue_that_is_not_there_is_named(folder: Folder) -> None:
    (folder.path / "models.yaml").unlink()
    problem = folder.problem()
    assert problem.startswith("models.yaml:")
    assert "is not there, and names the models" in problem


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"mode: [generation\nparallel: 4\n", "is not YAML"),
        (b"\xff\xfe\x00mode", "is not UTF-8"),
        (b"", "is empty"),
        (b"# all commented out\n", "is empty"),
        (b"- mode: generation\n", "holds no fields"),
        (b"generation\n", "holds no fields"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(folder: Folder, content: bytes, told: str) -> None:
    (folder.path / "mine.yaml").write_bytes(content)
    problem = folder.problem()
    assert problem.startswith("mine.yaml:")
    assert told in problem


def test_a_folder_in_the_place_of_a_file_is_named(folder: Folder) -> None:
    (folder.path / "mine.yaml").mkdir()
    assert "mine.yaml" in folder.problem()
    assert "Is a directory" in folder.problem()


# A twin


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        ("demo-chat", {"spill": "embedding-cpu"}, "is for embedding; leave it out"),
        ("minilm", {"spill": "embeding-cpu"}, "did you mean 'embedding-cpu'?"),
        ("minilm", {"spill": "generation"}, "is for generation; name a profile for embedding"),
        ("minilm", {"spill": "embedding"}, "is its profile already"),
        (
            "minilm",
            {"profile": "embedding-cpu", "spill": "embedding"},
            "needs `device: cpu`, for a twin runs on the host",
        ),
    ],
)
def test_spill_names_another_embedding_profile_that_runs_on_the_host(
    folder: Folder, model: str, fields: dict[str, str], said: str
) -> None:
    folder.change_model(model, **fields)
    problem = folder.problem()
    assert f"models.{model}.spill: " in problem
    assert said in problem


def test_a_twin_pools_as_its_model_does(folder: Folder) -> None:
    folder.change_model("minilm", spill="embedding-cpu")
    folder.change("embedding-cpu.yaml", lambda profile: profile.update(pooling="cls"))
    assert "the two would make other vectors of one text" in folder.problem()

    folder.change("embedding.yaml", lambda profile: profile.update(pooling="cls"))
    assert folder.load().catalogue.models["minilm"].spill == "embedding-cpu"


def test_overrides_must_do_for_the_twin_too(folder: Folder) -> None:
    folder.change_model("minilm", spill="embedding-cpu", overrides={"main_gpu": 1})
    problem = folder.problem()
    assert "models.minilm.overrides" in problem
    assert "as its twin, with 'embedding-cpu': " in problem


def test_overrides_must_do_for_the_fallback_too(folder: Folder) -> None:
    folder.change(
        "embedding.yaml", lambda profile: profile.update(fallback_profile="embedding-cpu")
    )
    folder.change_model("minilm", overrides={"main_gpu": 1})
    problem = folder.problem()
    assert (
        ": models.minilm.overrides.main_gpu: with its fallback_profile 'embedding-cpu': " in problem
    )
    assert "is for device: gpu; leave it out" in problem

    folder.change_model("minilm", overrides={"device": "gpu1"})
    assert (
        "models.minilm.overrides.device: keeps its fallback_profile 'embedding-cpu', which is for "
        "the host, on the GPU, too; " in folder.problem()
    )

    folder.change_model("minilm", overrides={"batch_size": 512, "ubatch_size": 512})
    assert folder.load().resolve("minilm").profile.fallback_profile == "embedding-cpu"


def test_a_fallback_that_overrides_choose_must_be_there(folder: Folder) -> None:
    folder.change_model("minilm", overrides={"fallback_profile": "embedding-cup"})
    assert (
        "models.minilm.overrides.fallback_profile: there is no profile 'embedding-cup'; did you "
        "mean 'embedding-cpu'?" in folder.problem()
    )


def test_a_ranking_model_has_no_twin(folder: Folder) -> None:
    folder.change_model("minilm", spill="embedding-cpu", overrides={"pooling": "rank"})
    assert "is for models that make vectors" in folder.problem()
