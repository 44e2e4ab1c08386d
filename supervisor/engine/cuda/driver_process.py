"""A process that asks the driver to checkpoint another one, so that a call that hangs can be ended.

    python -m supervisor.engine.cuda.driver_process LIBRARY ACTION PID PARENT

ACTION: lock, checkpoint, restore, unlock or state. Answers with one line of JSON:
`{"seconds": …, "state": …}`, or `{"error": …, "is_absent": …}`.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from supervisor.engine.cuda.libcuda import CudaError, Libcuda, NoLibcudaError
from supervisor.own_process import end_with_parent

LOCK_TIMEOUT_MS = 10_000


def main(arguments: list[str]) -> None:
    """Do what is asked, and answer."""
    library, action, pid, parent_pid = arguments
    end_with_parent(int(parent_pid))
    try:
        driver = Libcuda(library)
        began_at = time.monotonic()
        if action == "lock":
            driver.lock(int(pid), LOCK_TIMEOUT_MS)
        elif action != "state":
            getattr(driver, action)(int(pid))
        seconds = time.monotonic() - began_at
        _answer({"seconds": seconds, "state": driver.state(int(pid))})
    except (NoLibcudaError, CudaError) as error:
        _answer({"error": str(error), "is_absent": isinstance(error, NoLibcudaError)})


def _answer(content: Mapping[str, Any]) -> None:
    print(json.dumps(content), flush=True)  # noqa: T201 - what is printed is the answer


if __name__ == "__main__":
    main(sys.argv[1:])
