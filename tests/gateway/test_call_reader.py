"""What a head and a body say of a call: which model, how urgent, whether the device may switch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.holder import ConfigurationHolder
from supervisor.config.load import load
from supervisor.core.scheduling.values import Priority
from supervisor.engine.targets import Targets
from supervisor.engine.tasks import ModelTask
from supervisor.errors import RequestRefused
from supervisor.gateway.call import Call
from supervisor.gateway.call_reader import UPSTREAM, CallReader, read_head
from tests.conftest import write_configuration
from tests.gateway.conftest import shipped
from tests.host_alone import HostAlone

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"


class Reading:
    """Reads calls as a configuration has it; keyword arguments change what is shipped."""

    def __init__(self, folder: Path, profiles_dir: Path, **files: Any) -> None:
        named = {f"{name}.yaml": content for name, content in files.items()}
        write_configuration(folder, profiles_dir, None, named)
        holder = ConfigurationHolder(load(folder, Path("/models"), {}))
        self.machine = HostAlone()
        self.targets = Targets(holder, self.machine)
        self._reader = CallReader(holder, self.targets)

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        *headers: tuple[bytes, bytes],
    ) -> Call:
        head = read_head(method, path, headers, takes_chunks=True)
        call_head = self._reader.read_head(head, is_raw=path.startswith(UPSTREAM))
        content = body or b""
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        return self._reader.read(call_head, content, "1")


@pytest.fixture
def reading(tmp_path: Path, profiles_dir: Path) -> Reading:
    return Reading(tmp_path, profiles_dir)


@pytest.mark.parametrize(
    ("method", "path", "model"),
    [
        ("POST", CHAT, "demo-chat"),
        ("POST", "/completion", "demo-chat"),
        ("POST", EMBED, "minilm"),
        ("POST", "/tokenize", None),
        ("POST", "/slots/0?action=erase", None),
        ("GET", "/props", None),
        ("GET", CHAT, None),
    ],
)
def test_request_that_names_no_model_means_the_default_of_what_its_route_is_for(
    reading: Reading, method: str, path: str, model: str | None
) -> None:
    wanted = reading.call(method, path, {"input": "a"}).wanted

    assert (wanted.model if wanted else None) == model


def test_request_that_names_none_of_several_models_is_refused_with_their_names(
    tmp_path: Path, profiles_dir: Path
) -> None:
    reading = Reading(tmp_path, profiles_dir, models=shipped("models.yaml", default_models={}))

    with pytest.raises(RequestRefused, match="bench-chat, demo-chat") as refused:
        reading.call("POST", CHAT)
    wanted = reading.call("POST", EMBED).wanted

    assert refused.value.code == "model_not_named"
    assert wanted is not None
    assert wanted.model == "minilm"  # the only one that embeds


def test_request_whose_task_no_model_can_do_is_refused(tmp_path: Path, profiles_dir: Path) -> None:
    catalogue = shipped("models.yaml", default_models={})
    del catalogue["models"]["minilm"]
    reading = Reading(tmp_path, profiles_dir, models=catalogue)

    with pytest.raises(RequestRefused, match="no model for embedding") as refused:
        reading.call("POST", EMBED)

    assert refused.value.code == "model_type_mismatch"


def test_reranker_is_meant_where_documents_are_ranked_and_never_where_vectors_are_asked_for(
    tmp_path: Path, profiles_dir: Path
) -> None:
    catalogue = shipped("models.yaml", default_models={})
    catalogue["models"]["ranker"] = {
        "path": "ranker.gguf",
        "type": "embedding",
        "overrides": {"pooling": "rank"},
    }
    reading = Reading(tmp_path, profiles_dir, models=catalogue)

    ranks, embeds = (reading.call("POST", path).wanted for path in ("/v1/rerank", EMBED))

    assert ranks is not None
    assert embeds is not None
    assert (ranks.model, embeds.model) == ("ranker", "minilm")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", CHAT),
        ("POST", "/infill"),
        ("POST", "/tokenize"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", f"/upstream/demo-chat{CHAT}"),
        ("POST", "/upstream/chat/tokenize"),
    ],
)
def test_work_for_a_model_may_switch(reading: Reading, method: str, path: str) -> None:
    assert reading.call(method, path, {"model": "demo-chat"}).head.may_switch


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_no_method_but_post_may_switch(reading: Reading, method: str) -> None:
    assert not reading.call(method, CHAT, {"model": "demo-chat"}).head.may_switch


@pytest.mark.parametrize(
    "path", ["/slots", "/slots/0?action=erase", "/props", "/metrics", "/lora-adapters", "/no/such"]
)
@pytest.mark.parametrize("prefix", ["", "/upstream/demo-chat"])
def test_what_asks_or_changes_how_a_server_is_never_switches(
    reading: Reading, prefix: str, path: str
) -> None:
    assert not reading.call("POST", prefix + path, {"model": "demo-chat"}).head.may_switch


@pytest.mark.parametrize("model", ["minilm", "nobody"])
def test_raw_work_that_its_model_cannot_do_never_switches(
    tmp_path: Path, profiles_dir: Path, model: str
) -> None:
    models = shipped("models.yaml", unknown_models="default")
    reading = Reading(tmp_path, profiles_dir, models=models)

    assert not reading.call("POST", f"/upstream/{model}{CHAT}").head.may_switch


def test_nothing_may_switch_where_the_operator_switches(tmp_path: Path, profiles_dir: Path) -> None:
    settings = shipped("supervisor.yaml", scheduler={"auto_switch": False})
    reading = Reading(tmp_path, profiles_dir, supervisor=settings)

    assert not reading.call("POST", CHAT).head.may_switch


@pytest.mark.parametrize(
    ("headers", "priority"),
    [
        ((), Priority.BATCH),
        (((b"X-Priority", b"interactive"),), Priority.INTERACTIVE),
        (((b"x-priority", b"batch"),), Priority.BATCH),
    ],
)
def test_call_is_as_urgent_as_its_client_says_else_as_its_model(
    tmp_path: Path, profiles_dir: Path, headers: Any, priority: Priority
) -> None:
    models = shipped("models.yaml")["models"]
    models["minilm"]["priority"] = "batch"
    reading = Reading(tmp_path, profiles_dir, models={"models": models})

    assert reading.call("POST", EMBED, {"model": "minilm"}, *headers).priority is priority
    assert reading.call("POST", "/tokenize").priority is Priority.INTERACTIVE


@pytest.mark.parametrize("given", [b"high", b"", b"Batch", b"batch, batch"])
def test_priority_that_is_none_is_refused(reading: Reading, given: bytes) -> None:
    with pytest.raises(RequestRefused, match="`interactive` or `batch`") as refused:
        reading.call("POST", CHAT, {}, (b"X-Priority", given))

    assert refused.value.code == "bad_request"


def test_what_is_about_to_switch_is_on_the_device_that_came_to_life_meanwhile(
    reading: Reading,
) -> None:
    wanted = reading.call("POST", CHAT, {"model": "demo-chat"}).wanted
    reading.machine.gpu = "gpu0"

    again = reading.call("POST", CHAT, {"model": "demo-chat"}).wanted

    assert wanted is not None
    assert again is wanted  # kept: whose model is live is served whatever the device
    able = reading.targets.able(again, ModelTask.GENERATION, CHAT)
    assert (wanted.device, able.device) == ("host", "gpu0")


def test_model_and_its_alias_are_one(reading: Reading) -> None:
    call = reading.call(
        "POST", f"{EMBED}?model=all-MiniLM-L6-v2", {"model": "minilm", "input": "a"}
    )
    assert call.wanted is not None
    assert call.wanted.model == "minilm"


def test_two_models_are_refused(reading: Reading) -> None:
    with pytest.raises(RequestRefused, match="two models are named: demo-chat, minilm"):
        reading.call("POST", f"{EMBED}?model=demo-chat", {"model": "minilm", "input": "a"})
