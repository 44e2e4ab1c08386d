"""How busy the device is meanwhile: a GPU as its driver says, else the processors."""

import threading
from statistics import mean
from types import TracebackType
from typing import Self

import psutil

from lab.harness.servers import Controller

PAUSE_S = 0.25


class Utilisation:
    """Samples, in percent, what the busiest GPU or all processors do, while the context lasts."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._samples: list[float] = []
        self._should_stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def percent(self) -> float:
        """The mean of the samples."""
        return mean(self._samples) if self._samples else 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._should_stop.set()
        self._thread.join()

    def _sample(self) -> None:
        psutil.cpu_percent()  # the first one has nothing to be compared with
        while not self._should_stop.wait(PAUSE_S):
            gpus = [
                device["utilisation_percent"]
                for device in self._controller.call("GET", "/gpu")["devices"]
                if device["utilisation_percent"] is not None
            ]
            self._samples.append(max(gpus) if gpus else psutil.cpu_percent())
