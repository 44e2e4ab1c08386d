"""The folders of a run: profiles with short time-outs, and models, some of which are corrupt."""

import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lab.chaos.disk import Disk
from lab.chaos.ledger import Ledger
from lab.chaos.setting import (
    BODY_LIMIT_BYTES,
    DRAIN_TIMEOUT_S,
    EARLY_ANSWER_AFTER_S,
    EMBEDDING_MODEL,
    HOLD_TIMEOUT_S,
    MANUAL_HOLD_S,
    MODELS,
    RELEASE_TIMEOUT_S,
    SHUTDOWN_DRAIN_S,
    START_TIMEOUT_S,
    STOP_GRACE_S,
    Setting,
)
from lab.harness.redis_server import RedisServer

PROFILES: Mapping[str, tuple[str, ...]] = {
    "demo-chat": ("generation", "narrow"),
    "bench-chat": ("generation", "narrow"),
    "minilm": ("embedding", "few"),
}
"""The profiles that each model is switched between; the first is its default."""

DEFAULT_MODEL = MODELS[0]
"""What starts first, and what a chat means that names no model."""

TWIN_PROFILE = "twin"
"""Of the embedding model's twin on the host, where its servers are on simulated GPUs."""

SWAPPED = "swapped"
"""A model whose file is whole at one time and cut short at another."""

SWAPPED_FOR = "demo-chat"
"""What it is when it is whole."""

CORRUPT = ("truncated", "wrong-magic", "growing")
"""Models whose files are never whole, and change all the time."""

_COMMON: dict[str, Any] = {
    "start_timeout_s": START_TIMEOUT_S,
    "drain_timeout_s": DRAIN_TIMEOUT_S,
    "stop_grace_s": STOP_GRACE_S,
    "threads": 1,  # two that wait for each other spin, and take the machine from all others
    "memory": {"margin_bytes": "64MiB"},
}
VRAM: Mapping[str, tuple[int, float, dict[str, Any]]] = {
    "generation": (13, 0.6, {}),
    "narrow": (14, 0.3, {"tensor_split": [1.0, 1.0]}),
    "embedding": (10, 0.9, {"main_gpu": 1}),
    "few": (6, 0.0, {}),
}
"""What a server of each profile takes of simulated GPUs (in GiB), how long after its death that is
given back, and where it is: two may be beside each other on one GPU, and three may not."""

_GENERATION = {"mode": "generation", "ctx_size": 1024, "batch_size": 512, "parallel": 4}
_EMBEDDING = {"mode": "embedding", "batch_size": 512, "kv_unified": True, "parallel": 4}


class Layout:
    """Where the controller of a run finds what operators write, and where it writes itself."""

    def __init__(self, setting: Setting) -> None:
        """Make the folders, with links to the whole models and first versions of the others."""
        self.profiles = setting.work_dir / "profiles"
        self.models = setting.work_dir / "models"
        self.data = setting.work_dir / "data"
        self.temporary = setting.work_dir / "tmp"
        for folder in (self.profiles, self.models, self.temporary):
            folder.mkdir()
        self.disk = Disk(self.data)
        self.queue: RedisServer | None = None
        if setting.shares_queue:
            folder = setting.work_dir / "queue"
            folder.mkdir()
            self.queue = RedisServer(folder)
        self._has_gpus = setting.devices > 0
        self._server = {"log_format": "json", "max_body_bytes": BODY_LIMIT_BYTES}
        if setting.fast_lane is not None:
            self._server["fast_lane"] = setting.fast_lane
        for name in MODELS:
            (self.models / f"{name}.gguf").symlink_to(setting.models.resolve() / f"{name}.gguf")
        self.files = ModelFiles(self.models)

    def write(self, *, is_exclusive: bool) -> None:
        """Write the YAML files; `is_exclusive`: one server at a time, else as many as fit."""
        device: dict[str, Any] = {"exclusive": is_exclusive}
        if not is_exclusive and not self._has_gpus:
            device["budget_bytes"] = "8GiB"
        names = ("gpu0", "gpu1") if self._has_gpus else ("host",)
        files: dict[str, dict[str, Any]] = {
            "models": {
                "default_model": DEFAULT_MODEL,
                "default_models": {"generation": DEFAULT_MODEL},
                "models": _catalogue(has_twin=self._has_gpus),
            },
            "supervisor": {
                "server": self._server,
                "devices": dict.fromkeys(names, device),
                "queue": {
                    "hold_timeout_s": HOLD_TIMEOUT_S,
                    "early_answer_after_s": EARLY_ANSWER_AFTER_S,
                },
                "scheduler": {"manual_hold_s": MANUAL_HOLD_S},
                "switch": {"shutdown_drain_timeout_s": SHUTDOWN_DRAIN_S},
                "jobs": {} if self.queue is None else {"queue_url": self.queue.url},
            },
            "generation": {**_GENERATION, **_COMMON},
            "narrow": {**_GENERATION, **_COMMON, "parallel": 2, "ctx_size": 2048},
            "embedding": {**_EMBEDDING, **_COMMON},
            "few": {**_EMBEDDING, **_COMMON, "parallel": 2},
            TWIN_PROFILE: {**_EMBEDDING, **_COMMON, "device": "cpu"},
        }
        for name, content in files.items():
            more = _on_gpus(name) if self._has_gpus and name in VRAM else {}
            text = yaml.safe_dump(content | more)
            (self.profiles / f"{name}.yaml").write_text(text, encoding="utf-8")


def _on_gpus(profile: str) -> dict[str, Any]:
    """Return what a profile says where its servers take memory of simulated GPUs."""
    size_gib, release_s, place = VRAM[profile]
    taken_bytes = size_gib << 30
    memory = {
        **_COMMON["memory"],
        "need_bytes": taken_bytes,
        "release_timeout_s": RELEASE_TIMEOUT_S,
    }
    variables = {
        "VRAM_BYTES": str(taken_bytes),
        "VRAM_RELEASE_AFTER_S": str(release_s),
        "VRAM_RELEASE_STEPS": "3",
    }
    passed = ["SIMULATED_*", "VRAM_*"]
    return {"device": "gpu", "memory": memory, "env": variables, "env_passthrough": passed, **place}


def _catalogue(*, has_twin: bool) -> dict[str, Any]:
    whole: dict[str, Any] = {
        name: {"path": f"{name}.gguf", "type": "generation", "profile": PROFILES[name][0]}
        for name in MODELS
    }
    whole[EMBEDDING_MODEL] |= {"type": "embedding", "overrides": {"ctx_size": 512}}
    if has_twin:
        whole[EMBEDDING_MODEL]["spill"] = TWIN_PROFILE
    changing = {
        name: {"path": f"{name}.gguf", "type": "generation"} for name in (*CORRUPT, SWAPPED)
    }
    return whole | changing


class ModelFiles:
    """The files that change while the controller runs: swapped as a whole, or written in place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._source = (folder / f"{SWAPPED_FOR}.gguf").resolve()
        self._whole = self._source.read_bytes()
        self.swaps = 0
        """How often the swapped model's file was replaced; the same before and after: it stayed."""
        self.is_whole = False
        """Whether the swapped model's file is whole now."""
        self._replace(SWAPPED, self._whole[:1000])
        self._replace("truncated", self._whole[: len(self._whole) // 2])
        self._replace("wrong-magic", b"GGML" + self._whole[4:])
        self._replace("growing", b"GGUF")

    def change(self, choices: random.Random, ledger: Ledger) -> None:
        """Change one of them. Draws three choices, whatever is changed."""
        name = choices.choice((*CORRUPT, SWAPPED, SWAPPED))
        share, byte = choices.random(), choices.randrange(256)
        length = int(share * (len(self._whole) - 1))
        match name:
            case "growing":  # somebody copies it there, and never comes to the end
                with (self._folder / "growing.gguf").open("wb") as file:
                    file.write(self._whole[:length])
            case "wrong-magic":
                magic = bytes((byte, byte ^ 0x55, byte, byte))  # never GGUF: two bytes are equal
                self._replace(name, magic + self._whole[4:])
            case "truncated":
                self._replace(name, self._whole[:length])
            case _:
                self.is_whole = not self.is_whole
                self.swaps += 1
                self._replace(name, self._whole if self.is_whole else self._whole[:length])
        ledger.note(f"file of {name} changed ({length} bytes, swapped whole: {self.is_whole})")

    def _replace(self, name: str, content: bytes) -> None:
        new = self._folder / f"{name}.new"
        new.write_bytes(content)
        shutil.move(new, self._folder / f"{name}.gguf")
