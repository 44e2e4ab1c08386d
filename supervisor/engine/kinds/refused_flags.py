"""The flags of llama-server that `extra_args` and `env` may not give, and what to do instead."""

from collections.abc import Mapping

from supervisor.engine.kinds.flag_table import ADDRESS_REMEDY, FLAGS, MODEL_REMEDY, field_remedy

_NEVER_OURS = {
    MODEL_REMEDY: (
        *("--model-url", "-mu", "--docker-repo", "-dr", "--hf-repo", "-hf", "-hfr"),
        *("--hf-file", "-hff", "--models-dir", "--models-preset", "--models-max"),
        *("--models-autoload", "--no-models-autoload"),
    ),
    ADDRESS_REMEDY: ("--reuse-port",),
    "each start has a key of its own, which only the controller knows; leave it out": (
        "--api-key",
        "--api-key-file",
    ),
    "the controller asks for its routes at /; leave it out": ("--api-prefix",),
    "the controller reaches it on this machine without TLS; leave it out, and put a proxy that "
    "speaks TLS in front of the controller": ("--ssl-key-file", "--ssl-cert-file"),
    "the controller reads the slots to see whether the server works; leave it out": ("--no-slots",),
    field_remedy("kv_unified"): ("-no-kvu",),
    "write the field load_mode instead": (
        *("--mmap", "--no-mmap", "--mlock", "-dio", "--direct-io", "-ndio", "--no-direct-io"),
    ),
    "write the field device instead, by which the controller knows whose memory it takes": (
        *("-dev", "--device"),
    ),
    "layers are divided in split mode layer, as device and tensor_split say; leave it out": (
        *("-sm", "--split-mode"),
    ),
    "write `type: embedding` and `pooling: rank` for the model in models.yaml": (
        "--rerank",
        "--reranking",
    ),
    "the server prints something and ends; leave it out": (
        *("--help", "-h", "--usage", "--version", "--list-devices", "--cache-list", "-cl"),
        "--completion-bash",
    ),
}

TAKEN_AWAY: Mapping[str, str] = {
    **{name: flag.remedy for flag in FLAGS if flag.remedy for name in flag.spellings},
    **{name: instead for instead, names in _NEVER_OURS.items() for name in names},
}
"""Flags that `extra_args` may not give, by every spelling, with what to do instead: they would take
from us what the controller relies on."""

DOWNLOADS = "can download weights"
"""What the help says of flags that stand for a model of their own (`--gpt-oss-20b-default`)."""


def instead_of(flag: str, help_text: str = "") -> str | None:
    """Return what to do instead of giving the flag in `extra_args`; None: it may be given."""
    return MODEL_REMEDY if DOWNLOADS in help_text else TAKEN_AWAY.get(flag)
