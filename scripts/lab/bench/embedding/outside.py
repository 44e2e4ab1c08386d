"""sentence-transformers on the same model and texts, in a Python of its own.

It is no dependency of this project: it brings PyTorch, which is as large as all else together.
"""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from demo_models.minilm import FOLDER_IN_WHEEL, verified_wheel

from lab.harness.command import LabError
from lab.harness.setting import Setting
from supervisor.engine.kinds.cached_build import cached_build_dir

BATCH_SIZES = (8, 32, 128)
SAMPLE = 400
"""Texts by which the best batch size is found."""

_SCRIPT = """
import json, sys, time
from sentence_transformers import SentenceTransformer

asked = json.load(sys.stdin)
model = SentenceTransformer(asked["folder"])  # on a GPU, where it finds one
texts = asked["texts"]

def took_s(some, batch_size):
    began_at = time.monotonic()
    model.encode(some, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
    return time.monotonic() - began_at

sample = texts[: asked["sample"]]
took_s(sample[:8], 8)
best = min(asked["batch_sizes"], key=lambda size: took_s(sample, size))
json.dump({"texts_per_s": len(texts) / took_s(texts, best), "batch_size": best}, sys.stdout)
"""


def encode_rate(python: Path, texts: Sequence[str], setting: Setting) -> float:
    """Return the texts per second of `SentenceTransformer.encode` at its best batch size.

    Raises LabError where that Python does not have it.
    """
    folder = setting.work_dir / "sentence-transformers"
    if not folder.exists():
        with verified_wheel(cached_build_dir().parents[1] / "bench" / "wheel") as wheel:
            wheel.extractall(folder)
    asked = {
        "folder": str(folder / FOLDER_IN_WHEEL),
        "texts": texts,
        "batch_sizes": BATCH_SIZES,
        "sample": SAMPLE,
    }
    finished = subprocess.run(
        [python, "-c", _SCRIPT],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        raise LabError(f"{python}: {finished.stderr.strip()[-500:]}")
    rate: float = json.loads(finished.stdout)["texts_per_s"]
    return rate
