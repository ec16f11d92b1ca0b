"""OpenVINO as an engine for CPUs, in throughput mode: every image is a request of its own, several run at once.

Owns the requests and putting their results together. Does not know which networks there are.
"""

import queue
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.hardware import Precision
from pipeline.vision.graph import Graph, measure
from pipeline.vision.images import Preprocessing
from pipeline.vision.int8 import quantise

# Of what is computed in floats; int8 is in the graph itself.
HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "f32"}
WAITING = 4  # images that wait for each request before `start` does


class OpenVinoEngine:
    """See `Engine`.

    A thread waits for each request, for OpenVINO's queue of requests calls nobody back when an inference fails.
    """

    name = "openvino"
    device = "cpu"
    batch_size = 1

    def __init__(self, module: nn.Module, preprocessing: Preprocessing, precision: Precision) -> None:
        self.grid, self.channels = measure(module, preprocessing.image_size)
        self.precision = precision
        compiled = compile_network(module, preprocessing, precision)
        # Twice what it asks for: a stream goes on with the next image while Python fetches the last one.
        count = 2 * compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(count):
            self._requests.put(compiled.create_infer_request())
        self._pool = ThreadPoolExecutor(count, "request")
        self._room = threading.BoundedSemaphore(count * (1 + WAITING))

    def start(self, images: Sequence[NDArray[np.uint8]]) -> Future[NDArray[np.float32]]:
        """See `Engine.start`."""
        regions = np.empty((len(images), self.grid[0] * self.grid[1], self.channels), np.float32)
        batch = _Batch(regions)
        for image, place in zip(images, regions, strict=True):
            self._room.acquire()
            done = self._pool.submit(self._infer, image, place)
            done.add_done_callback(lambda _: self._room.release())
            done.add_done_callback(batch.count)
        return batch.future

    def _infer(self, image: NDArray[np.uint8], place: NDArray[np.float32]) -> None:
        request = self._requests.get()
        try:  # reads the image and writes the regions where they lie: copies would cost as much as a small network
            pixels = np.require(image[None], requirements=["C", "W"])  # held until they have been read
            request.set_input_tensor(_shared(pixels))
            request.set_output_tensor(_shared(place[None]))
            request.start_async()
            request.wait()
        finally:
            self._requests.put(request)


def _shared(array: NDArray[Any]) -> Any:
    from openvino import Tensor

    return Tensor(array, shared_memory=True)


def compile_network(module: nn.Module, preprocessing: Preprocessing, precision: Precision) -> Any:
    """The network as OpenVINO runs it: (1, S, S, 3) uint8 to (1, R, C) float32, for many requests at once.

    Raises:
        DeviceError: it cannot be run in int8.
    """
    # Without this, importing and converting would each report to Google Analytics, from a fork of this process.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    graph = Graph(quantise(module, preprocessing) if precision == "int8" else module, preprocessing)
    shape = (1, preprocessing.image_size, preprocessing.image_size, 3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape it fixes, and the size is fixed here
        example = torch.zeros(shape, dtype=torch.uint8)
        model = openvino.convert_model(graph.eval(), example_input=example, input=[shape])
    options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": HINTS[precision]}
    return openvino.Core().compile_model(model, "CPU", options)


class _Batch:
    """One Future for the images of a batch."""

    def __init__(self, regions: NDArray[np.float32]) -> None:
        self.future: Future[NDArray[np.float32]] = Future()
        self.future.set_running_or_notify_cancel()
        self._regions, self._left, self._lock = regions, len(regions), threading.Lock()
        if not self._left:
            self.future.set_result(regions)

    def count(self, image: Future[None]) -> None:
        """Count an image in; the last one, or the first that failed, completes the batch."""
        error = image.exception()
        with self._lock:
            self._left -= 1
            if self.future.done():
                return
            if error is not None:
                self.future.set_exception(error)
            elif not self._left:
                self.future.set_result(self._regions)
