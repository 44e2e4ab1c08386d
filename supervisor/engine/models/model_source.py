"""What a model is: a GGUF file, whose header says what it needs, or what other servers load.

Those take a folder (of safetensors, say), or a name on a model hub.
"""

import re
from pathlib import Path

from supervisor.config.configuration import ResolvedModel
from supervisor.engine.models.model_file import ModelFile, inspect_model_file
from supervisor.engine.port import Abilities
from supervisor.errors import ModelFileError, UnfitProfile

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def look_at_model(resolved: ResolvedModel, abilities: Abilities) -> ModelFile | None:
    """Return a GGUF file's header; None for another kind of model, where the engine takes one.

    Raises ModelFileError when the file cannot be used, or nothing of that name can be meant.
    """
    if abilities.runs_gguf_only or resolved.path.suffix == ".gguf":
        return inspect_model_file(resolved.path)
    model_argument(resolved)
    return None


def require_stated_need(resolved: ResolvedModel) -> int:
    """Return the need that the profile states, in bytes, for a model without a header.

    Raises UnfitProfile when it states none.
    """
    need_bytes = resolved.profile.memory.need_bytes
    if need_bytes is None:
        problem = (
            f"{model_argument(resolved)} is not a GGUF file, whose header would say what it needs; "
            "write what the server takes on its device, such as 16GiB"
        )
        raise UnfitProfile(resolved.profile_name, {"memory.need_bytes": problem})
    return need_bytes


def model_argument(resolved: ResolvedModel) -> str:
    """Return what a server is to load: the path of what is there, else the name as written.

    Raises ModelFileError when nothing is there, and it is not the form of a name on a hub either.
    """
    if resolved.path.exists():
        return str(resolved.path)
    if _HUB_NAME.fullmatch(resolved.reference) and Path(resolved.reference).suffix != ".gguf":
        return resolved.reference
    raise ModelFileError(f"{resolved.path}: there is no such file or folder")
