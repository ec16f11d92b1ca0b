"""PyTorch as an engine: batch norms folded, channels last, batches of one fixed size (the last is padded).

Owns the threads that run the network, and the way to a GPU and back. Does not know which networks there are.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.hardware import Precision
from pipeline.vision.graph import Graph, fold_batch_norm, measure
from pipeline.vision.images import Preprocessing

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
WAITING = 2  # batches that wait for each thread before `start` does


class TorchEngine:
    """See `Engine`.

    On a CPU one thread runs all batches: an arithmetic library keeps a team of threads for each one that calls it. On
    a GPU two do, each on a stream of its own, so that one batch's transfers hide behind the other's arithmetic.
    """

    name = "torch"

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        precision: Precision,
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.grid, self.channels = measure(module, preprocessing.image_size)
        self.precision, self.device, self.batch_size = precision, device.type, batch_size
        self._target, self._on_gpu, self._size = device, device.type == "cuda", preprocessing.image_size
        graph = Graph(fold_batch_norm(module), preprocessing, DTYPES[precision]).eval().requires_grad_(False)
        self._graph = graph.to(device).to(memory_format=torch.channels_last)
        threads = 2 if self._on_gpu else 1
        self._pool = ThreadPoolExecutor(threads, "engine")
        self._room = threading.BoundedSemaphore(threads * (1 + WAITING))
        self._launching = threading.Lock()
        self._own = threading.local()

    def start(self, images: Sequence[NDArray[np.uint8]]) -> Future[NDArray[np.float32]]:
        """See `Engine.start`."""
        self._room.acquire()
        future = self._pool.submit(self._encode, images)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def _encode(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        regions = np.empty((len(images), self.grid[0] * self.grid[1], self.channels), np.float32)
        for start in range(0, len(images), self.batch_size):
            some = images[start : start + self.batch_size]
            regions[start : start + len(some)] = self._forward(self._batch(some))[: len(some)]
        return regions

    def _batch(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        # A kernel may be chosen by the batch's size, and another kernel rounds otherwise: always the same size.
        padded = torch.zeros((self.batch_size, self._size, self._size, 3), dtype=torch.uint8, pin_memory=self._on_gpu)
        np.stack(images, out=padded.numpy()[: len(images)])
        return padded

    def _forward(self, batch: Tensor) -> NDArray[np.float32]:
        if not self._on_gpu:
            with torch.inference_mode():
                return self._graph(batch).float().numpy()  # type: ignore[no-any-return]
        with torch.cuda.device(self._target), torch.cuda.stream(self._stream()):
            # The switches belong to the whole process, so only one thread at a time may turn them.
            exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
            with self._launching, exact, torch.inference_mode():
                regions = self._graph(batch.to(self._target, non_blocking=True))
            there = torch.empty(regions.shape, dtype=regions.dtype, pin_memory=True)
            there.copy_(regions, non_blocking=True)
            self._stream().synchronize()
        return there.float().numpy()

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._target)
        stream: torch.cuda.Stream = self._own.stream
        return stream
