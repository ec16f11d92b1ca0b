"""Preloaded by the workers of the tests: the quick encoder in place of a real one, and what is odd about a worker.

From the environment: NOTES, a file that gets the worker's NAME for every image it begins; HOLD, how many images it
takes before it waits until the file GATE is there; FIELDS, JSON that is added to its encoder's fields; CODE, what it
runs.
"""

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
from distributed import Worker
from numpy.typing import NDArray

from pipeline.encoding import station
from pipeline.vision.encoder import Encoder, EncodeSettings
from tests.encoding.quick import quick_encoder

_load = Encoder.load
_count = itertools.count()


def _noted(self: Encoder, content: bytes) -> NDArray[np.uint8]:
    with Path(os.environ["NOTES"]).open("a", encoding="utf-8") as file:
        file.write(os.environ["NAME"] + "\n")
    held = next(_count) >= int(os.environ.get("HOLD", "1000000"))
    while held and not Path(os.environ["GATE"]).exists():
        time.sleep(0.01)
    return _load(self, content)


def _open(cores: int, settings: EncodeSettings) -> Encoder:  # noqa: ARG001
    return quick_encoder(**json.loads(os.environ.get("FIELDS", "{}")))


def dask_setup(worker: Worker) -> None:  # noqa: ARG001
    """Called by dask when the worker starts."""
    Encoder.load = _noted  # type: ignore[method-assign]
    station.open_on = _open
    if "CODE" in os.environ:
        own = {**station.identity(), "code": os.environ["CODE"]}
        station.identity = lambda: own  # type: ignore[assignment]
