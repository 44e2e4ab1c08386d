"""What one run works with, and where its choices come from."""

import random
from dataclasses import dataclass
from pathlib import Path

GENERATION_MODELS = ("demo-chat", "bench-chat")
EMBEDDING_MODEL = "minilm"
MODELS = (*GENERATION_MODELS, EMBEDDING_MODEL)

DRAIN_TIMEOUT_S = 1.5
STOP_GRACE_S = 1.0
START_TIMEOUT_S = 6.0
HOLD_TIMEOUT_S = 10.0
SHUTDOWN_DRAIN_S = 1.5
EARLY_ANSWER_AFTER_S = 0.3
MANUAL_HOLD_S = 0.3
RELEASE_TIMEOUT_S = 4.0

REQUEST_BOUND_S = 60.0
"""A request without an answer is lost then: held four times (three repeats), and served slowly."""

ORPHAN_BOUND_S = 2.0
"""A server of ours that lives longer than this after its controller is an orphan."""

START_BOUND_S = 20.0
"""The controller must listen within this, whatever state its predecessor left."""

CALM_BOUND_S = 45.0
"""Each model must be served once more within this after the storm."""

BATCHES_BOUND_S = 180.0
"""All batches must be done within this after the storm: leases lapse, and pauses have grown."""

BODY_LIMIT_BYTES = 4 << 20
"""`server.max_body_bytes`, up to which clients upload."""

FAULTS = frozenset(
    {"kills", "disk", "sweep", "queue", "workers", "gpu", "non-readers", "half-close", "uploads"}
)
"""What `--faults` chooses from; leavers and readers that are slow always play."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Options of the command line and the folders; `work_dir` is temporary and ours alone.

    `seconds` is the length of the storm; what comes before and after takes some seconds more.
    `fast_lane` None leaves the setting of that name out.
    """

    seed: int
    seconds: float
    models: Path
    work_dir: Path
    llama_server: Path
    faults: frozenset[str] = FAULTS
    fast_lane: bool | None = None
    shares_queue: bool = False
    """Whether jobs stand on a Redis server, which dies as others do; else in the data folder."""
    devices: int = 0
    """Simulated GPUs whose memory the servers take; with none it is the host's."""

    def choices(self, actor: str) -> random.Random:
        """Return the actor's own source of choices.

        The n-th choice of an actor depends on the seed and on nothing that happens: actors must
        draw the same number of choices in each round, whatever they meet.
        """
        return random.Random(f"{self.seed}:{actor}")
