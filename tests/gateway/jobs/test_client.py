"""OpenAI's own client runs the whole cycle of batches unchanged."""

import json
import subprocess

from tests.conftest import ROOT
from tests.gateway.jobs.conftest import Caller

CLIENTS = ROOT / ".venv" / "clients" / "bin" / "python"
SCRIPT = ROOT / "tests" / "clients" / "run_batches.py"


def test_openai(caller: Caller) -> None:
    assert CLIENTS.exists(), "scripts/test installs the clients; run it once, with any test"
    finished = subprocess.run(
        [CLIENTS, SCRIPT, f"http://127.0.0.1:{caller.port}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    got = json.loads(finished.stdout)

    assert got["states"] == ["completed", "expired", "cancelled"]
    assert got["counts"] == {"total": 2, "completed": 1, "failed": 1}
    [answer] = got["output"]
    assert answer["custom_id"] == "good"
    assert len(answer["response"]["body"]["data"][0]["embedding"]) == 384
    assert got["usage"] == answer["response"]["body"]["usage"]["total_tokens"]
    [failed], [late], cancelled = got["errors"]
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["code"] == "input_too_long"
    assert late["error"]["code"] == "batch_expired"
    assert [each["error"]["code"] for each in cancelled] in ([], ["batch_cancelled"])
    assert got["cancelling"] == "cancelling"
    assert got["wrong"] == ["failed", "duplicate_custom_id", 2]
    assert got["all"][: len(got["made"])] == got["made"][::-1]
    assert set(got["files"]) == {"batch_output"}
    assert got["file"][:2] == ["requests.jsonl", "batch"]
    assert got["deleted"]
    assert got["refusal"] == "file_not_found"
