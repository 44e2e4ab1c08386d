"""The timeline of a report as a picture: memory in use, with the phases marked.

matplotlib draws it. It is no dependency of the product, and is installed when first needed.
"""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_runner.check import CheckError, say
from gpu_runner.report import PICTURE, TITLES, Folder

REQUIREMENT = "matplotlib>=3.9,<4"
INSTALL_TIMEOUT_S = 120.0
MIB_PER_GIB = 1024

PHASE_COLOURS = {
    "draining": "#f2c14e",
    "stopping": "#e4572e",
    "confirming": "#9b5de5",
    "starting": "#3a86ff",
}
_OTHER_COLOUR = "#444444"
_MOST_LABELS = 24


def draw(folder: Folder) -> None:
    """Draw what is in the folder's report. Raises CheckError where that cannot be done."""
    report = folder.read()
    parts = {n: p for n, p in report.get("parts", {}).items() if p.get("timeline")}
    if not parts:
        raise CheckError(f"{folder.path} holds no timeline to draw")
    require_matplotlib()
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(14, 3.2 * len(parts)), layout="constrained"
    )
    device = report["device"]
    figure.suptitle(f"{device['name']}, driver {device['driver_version']}: memory in use")
    axes = figure.subplots(len(parts), 1, squeeze=False)
    for row, (name, part) in zip(axes, parts.items(), strict=True):
        _draw_part(row[0], name, part)
    figure.savefig(folder.path / PICTURE, dpi=110)
    folder.write(report)


def require_matplotlib() -> None:
    """Install matplotlib into this environment where it is missing. Raises CheckError."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        say(f"  installing {REQUIREMENT} …")
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        try:
            subprocess.run(
                (*pip, REQUIREMENT),
                check=True,
                capture_output=True,
                text=True,
                timeout=INSTALL_TIMEOUT_S,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise CheckError(
                f"no picture: {REQUIREMENT} cannot be installed here; draw it elsewhere, with "
                "`scripts/gpu_check --draw FOLDER`"
            ) from error
        importlib.invalidate_caches()


def _draw_part(axis: Any, name: str, part: dict[str, Any]) -> None:
    points, marks = part["timeline"], part["marks"]
    end_s = part["took_s"]
    axis.step([p[0] for p in points], [p[1] / MIB_PER_GIB for p in points], where="post", lw=1)
    axis.set(title=TITLES[name], ylabel="GiB in use", xlim=(0, end_s), ylim=(0, None))
    axis.set_xlabel("s")
    ends = [mark["at_s"] for mark in marks[1:]] + [end_s]
    shown = set[str]()
    for mark, end in zip(marks, ends, strict=True):
        colour = PHASE_COLOURS.get(mark["label"])
        if colour is not None:
            label = None if mark["label"] in shown else mark["label"]
            shown.add(mark["label"])
            axis.axvspan(mark["at_s"], end, color=colour, alpha=0.35, lw=0, label=label)
    _draw_labels(axis, [m for m in marks if m["label"] not in PHASE_COLOURS])
    load = [(p[0], p[2]) for p in points if p[2] is not None]
    if any(percent for _, percent in load):
        busy = axis.twinx()
        busy.plot([at for at, _ in load], [percent for _, percent in load], color="#2a9d8f", lw=0.6)
        busy.set(ylabel="load, %", ylim=(0, 105))
    if shown:
        axis.legend(loc="upper right", ncols=len(shown), fontsize="small")


def _draw_labels(axis: Any, marks: list[dict[str, Any]]) -> None:
    """Write what else was marked at the bottom; of very many, lines alone would hide the curve."""
    marks = [m for m in marks if m["label"] not in {"preflight", "warming"}]
    if len(marks) > _MOST_LABELS:
        return
    for mark in marks:
        axis.axvline(mark["at_s"], color=_OTHER_COLOUR, lw=0.5, ls=":")
        axis.annotate(
            mark["label"],
            (mark["at_s"], 0.02),
            xycoords=("data", "axes fraction"),
            rotation=90,
            fontsize="xx-small",
            color=_OTHER_COLOUR,
        )


def draw_folder(path: Path) -> None:
    """Draw a report that was brought from another machine. Raises CheckError."""
    draw(Folder(path=path))
