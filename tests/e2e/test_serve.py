"""`llama-supervisor serve` as a user runs it: real servers, real models, real signals."""

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.e2e.conftest import Serve, Served, StreamOf, change, is_gone
from tests.patience import PATIENCE_S

HELLO = {"model": "demo-chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


async def chat(served: Served) -> str:
    status, answer = await served.json("POST", "/v1/chat/completions", HELLO)
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


async def switch(served: Served, model: str) -> None:
    status, report = await served.json("POST", "/switch-backend", {"model_name": model})
    assert (status, report.get("outcome")) == (200, "switched"), report


def modes(folder: Path, pattern: str) -> list[int]:
    """Return the permissions of what a folder holds."""
    return [path.stat().st_mode & 0o777 for path in folder.glob(pattern)]


async def live_on_bench_chat(serve: Serve, profiles: Path, **switch_settings: Any) -> Served:
    def use_bench_chat(catalogue: Any) -> None:
        catalogue["default_model"] = "bench-chat"
        # More threads than free cores wait for each other, and a stream takes half a minute.
        catalogue["models"]["bench-chat"]["overrides"] = {"threads": 1}

    change(profiles / "models.yaml", use_bench_chat)
    change(
        profiles / "supervisor.yaml", lambda settings: settings["switch"].update(switch_settings)
    )
    served = serve("--engine", "llama-server")
    await served.child()
    return served


# Serving


async def test_a_fresh_start_chats_embeds_and_switches_and_ends_without_a_trace(
    serve: Serve, engine: str, data_dir: Path
) -> None:
    served = serve("--engine", engine)
    child = await served.child()
    assert modes(data_dir.parent, "data") == modes(data_dir, "run-*") == [0o700]
    key = child.environ()["LLAMA_API_KEY"]
    assert (await served.json("GET", "/health"))[1] == {"status": "healthy"}
    assert await chat(served)

    await switch(served, "minilm")
    assert is_gone(child)
    body = {"model": "minilm", "input": ["Hello", "Good morning"]}
    status, answer = await served.json("POST", "/v1/embeddings", body)
    assert (status, [len(item["embedding"]) for item in answer["data"]]) == (200, [384, 384])
    await switch(served, "demo-chat")
    assert await chat(served)

    child = await served.child()
    served.terminate()
    assert await served.exit_code() == 0
    assert is_gone(child)
    assert served.events("controller.stopped")
    assert served.events("engine.chosen")[0]["engine"] == engine
    assert key not in served.log()
    assert child.pid in {event["pid"] for event in served.events("backend.spawned")}
    assert modes(data_dir, "run-*") == []


async def test_the_console_log_tells_where_it_listens(serve: Serve, profiles: Path) -> None:
    change(profiles / "supervisor.yaml", lambda settings: settings["server"].pop("log_format"))
    change(profiles / "models.yaml", lambda catalogue: catalogue.pop("default_model"))
    served = serve()
    await served.until(lambda: "controller.listening" in served.log())
    [line] = [line for line in served.log().splitlines() if "controller.listening" in line]
    url = next(word for word in line.split() if word.startswith("url=")).removeprefix("url=")
    async with aiohttp.ClientSession() as client, client.get(f"{url}/ready") as answer:
        assert answer.status == 200
    served.process.send_signal(signal.SIGINT)
    assert await served.exit_code() == 0


async def test_a_data_folder_with_a_long_path_is_no_hindrance(
    serve: Serve, data_dir: Path, tmp_path: Path
) -> None:
    temporary = data_dir.parent / "tmp"
    temporary.mkdir()
    long_path = tmp_path / ("long" * 50)
    served = serve("--data", str(long_path), env={"TMPDIR": str(temporary)})
    assert await served.child()
    assert await chat(served)
    assert modes(temporary, "llama-supervisor-*") == [0o700]
    served.terminate()
    assert await served.exit_code() == 0
    assert modes(temporary, "*") == modes(long_path, "run-*") == []


async def test_a_default_model_that_cannot_start_is_told_to_whoever_asks(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    served = serve("--models", str(tmp_path / "empty"))
    failed = await served.until_logged("switch.failed")
    assert "demo-chat.gguf" in failed["reason"]
    status, answer = await served.json("POST", "/v1/chat/completions", HELLO)
    assert (status, answer["error"]["code"]) == (503, "switch_failed")
    assert "demo-chat.gguf" in answer["error"]["message"]
    assert await served.json("GET", "/ready") == (503, {"status": "starting"})
    assert (await served.json("GET", "/management/health"))[0] == 503


async def test_settings_of_a_container_image_do_not_reach_the_server(
    serve: Serve, run_port: int
) -> None:
    """llama.cpp's own image sets LLAMA_ARG_HOST=0.0.0.0."""
    served = serve(env={"LLAMA_ARG_HOST": "0.0.0.0", "LLAMA_ARG_PORT": str(run_port)})
    child = await served.child()
    assert not [c for c in child.net_connections("tcp") if c.status == psutil.CONN_LISTEN]


@pytest.fixture
def run_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


# Ending


async def test_sigterm_lets_a_stream_in_flight_come_to_its_end(
    serve: Serve, profiles: Path, stream_of: StreamOf
) -> None:
    served = await live_on_bench_chat(serve, profiles)
    child = await served.child()
    stream = await stream_of(served, max_tokens=400)
    served.terminate()
    stopping = await served.until_logged("controller.stopping")
    assert (stopping["signal"], stopping["drain_timeout_s"]) == ("SIGTERM", 30.0)
    status, refusal = await served.json("POST", "/v1/chat/completions", HELLO)
    assert (status, refusal["error"]["code"]) == (503, "shutting_down")
    assert (await served.json("GET", "/ready"))[0] == 503
    assert (await stream.read()).rstrip().endswith(b"data: [DONE]")
    assert await served.exit_code() == 0  # long before the drain's deadline
    assert is_gone(child)
    [done] = [e for e in served.events("request.done") if e["path"] == "/v1/completions"]
    assert done["status"] == 200


async def test_a_stream_that_outlasts_the_drain_is_cut_visibly(
    serve: Serve, profiles: Path, stream_of: StreamOf
) -> None:
    served = await live_on_bench_chat(serve, profiles, shutdown_drain_timeout_s=0.2)
    child = await served.child()
    stream = await stream_of(served, max_tokens=100_000)
    served.terminate()
    with pytest.raises(aiohttp.ClientPayloadError):
        await stream.read()
    assert await served.exit_code() == 0
    assert is_gone(child)


async def test_a_second_sigterm_stops_at_once(
    serve: Serve, profiles: Path, stream_of: StreamOf
) -> None:
    served = await live_on_bench_chat(serve, profiles, shutdown_drain_timeout_s=600)
    child = await served.child()
    stream = await stream_of(served, max_tokens=100_000)
    served.terminate()
    await served.until_logged("controller.stopping")
    served.terminate()
    with pytest.raises(aiohttp.ClientPayloadError):
        await stream.read()
    assert await served.exit_code() == 0
    assert is_gone(child)
    assert served.events("controller.stopping_now")


async def test_sigterm_while_a_model_loads_leaves_nothing(serve: Serve) -> None:
    served = serve()
    spawned = await served.until_logged("backend.spawned")
    served.terminate()
    assert await served.exit_code() == 0
    assert not psutil.pid_exists(spawned["pid"])


async def test_a_killed_controller_leaves_no_child(serve: Serve, engine: str) -> None:
    served = serve("--engine", engine)
    child = await served.child()
    served.process.kill()
    async with asyncio.timeout(PATIENCE_S):
        while not is_gone(child):  # noqa: ASYNC110 - the kernel ends it
            await asyncio.sleep(0.01)


async def test_a_log_that_cannot_be_written_does_not_stop_the_service(
    serve: Serve, run_port: int
) -> None:
    served = serve("--port", str(run_port), log_file=Path("/dev/full"))
    url = f"http://127.0.0.1:{run_port}"
    async with aiohttp.ClientSession() as client:

        async def is_live() -> bool:
            try:
                async with client.get(f"{url}/status") as answer:
                    return bool((await answer.json())["state"] == "ready")
            except aiohttp.ClientConnectionError:
                return False

        async with asyncio.timeout(PATIENCE_S):
            while not await is_live():
                assert served.process.poll() is None
                await asyncio.sleep(0.01)
        async with client.post(f"{url}/v1/chat/completions", json=HELLO) as answer:
            assert answer.status == 200
    served.terminate()
    await served.exit_code()


# What keeps it from starting


async def test_a_port_that_is_taken_is_named(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        served = serve("--port", str(port))
        assert await served.exit_code() == 1
    told = served.log().splitlines()[-1].lower()  # the event loops differ in the first letter
    assert told.startswith(
        f"cannot listen on 127.0.0.1:{port}: address already in use by pid {os.getpid()}; "
    )
    assert "Traceback" not in served.log()


async def test_a_host_that_is_not_ours_is_named(serve: Serve) -> None:
    served = serve("--host", "192.0.2.1")  # RFC 5737: nobody's
    assert await served.exit_code() == 1
    assert "cannot listen on 192.0.2.1:0: " in served.log()
    assert "Traceback" not in served.log()


async def test_a_configuration_is_refused_with_every_problem_of_every_file(
    serve: Serve, profiles: Path
) -> None:
    def break_catalogue(catalogue: Any) -> None:
        catalogue["default_model"] = "nobody"
        catalogue["models"]["demo-chat"]["profile"] = "no-such-profile"

    change(profiles / "models.yaml", break_catalogue)
    change(profiles / "generation.yaml", lambda profile: profile.update(ctx_size="large", ctx=1))
    change(profiles / "supervisor.yaml", lambda settings: settings["server"].update(port=-1))
    served = serve()
    assert await served.exit_code() == 2
    told = served.log()
    for file, field in (
        ("models.yaml", "default_model: "),
        ("models.yaml", "models.demo-chat.profile: "),
        ("generation.yaml", "ctx_size: "),
        ("generation.yaml", "ctx: "),
        ("supervisor.yaml", "server.port: "),
    ):
        assert [line for line in told.splitlines() if file in line and f": {field}" in line], field
    assert "Traceback" not in told


async def test_a_device_that_cannot_be_one_is_named(serve: Serve, profiles: Path) -> None:
    change(profiles / "supervisor.yaml", lambda settings: settings["devices"].update(hsot={}))
    served = serve()
    assert await served.exit_code() == 2
    assert "devices.hsot: must be host, or a GPU by its number" in served.log()


async def test_a_gpu_that_is_required_and_not_seen_ends_the_controller(
    serve: Serve, profiles: Path
) -> None:
    required = {"gpu7": {"required": True}}
    change(profiles / "supervisor.yaml", lambda settings: settings["devices"].update(required))
    served = serve()
    assert await served.exit_code() == 1
    assert "gpu7 is required (devices.gpu7.required) and cannot be used: " in served.log()
    assert "Traceback" not in served.log()


async def test_listening_beyond_this_machine_without_keys_is_said(serve: Serve) -> None:
    served = serve("--host", "0.0.0.0")
    exposed = await served.until_logged("controller.exposed")
    assert exposed["level"] == "warning"
    assert "0.0.0.0" in exposed["problem"]
    _, status = await served.json("GET", "/status")
    assert status["warnings"] == [exposed["problem"]]


async def test_what_check_warns_of_is_said_at_the_start(serve: Serve, profiles: Path) -> None:
    store = {"url": "http://127.0.0.1:9", "api_key_env": "NO_SUCH_KEY"}
    change(profiles / "supervisor.yaml", lambda settings: settings.update(vectors=store))
    served = serve()
    told = await served.until_logged("configuration.warning")
    assert told["level"] == "warning"
    assert "vectors.api_key_env: NO_SUCH_KEY is not set here" in told["problem"]
    _, status = await served.json("GET", "/status")
    assert status["warnings"] == [told["problem"]]


async def test_listening_on_this_machine_only_is_no_reason_to_warn(serve: Serve) -> None:
    served = serve()
    _, status = await served.json("GET", "/status")
    assert status["warnings"] == []
    assert not served.events("controller.exposed")


async def test_a_data_folder_that_cannot_be_made_is_named(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    served = serve("--data", str(tmp_path / "file" / "data"))
    assert await served.exit_code() == 2
    assert f"--data {tmp_path}/file/data: cannot be written: Not a directory" in served.log()


async def test_a_missing_engine_is_told_with_the_remedy(serve: Serve, tmp_path: Path) -> None:
    nowhere = {"LLAMA_SERVER_BIN": "", "PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path)}
    served = serve("--engine", "llama-server", env=nowhere)
    assert await served.exit_code() == 1
    assert "run scripts/build_llama_server.py" in served.log().splitlines()[-1]
    assert "Traceback" not in served.log()
