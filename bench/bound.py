"""This machine's bound for stage one: forward pass, decoding and compression, each alone and on all cores.

Owns how each is driven as fast as it goes. Building a backbone and compiling it is on nobody's account.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.features.quantise import calibrate
from pipeline.features.rows import encode_row
from pipeline.features.store import Layout
from pipeline.vision.backbones import Backbone, build_backbone
from pipeline.vision.encoder import Encoder, EncodeSettings, open_encoder
from pipeline.vision.engines import Engine
from pipeline.vision.graph import Graph, fold_batch_norm

Images = Sequence[NDArray[np.uint8]]  # (S, S, 3) each
HELD = 64  # images whose pixels and features are kept in memory
IN_FLIGHT = 8  # batches


@cache
def opened(settings: EncodeSettings) -> Encoder:
    """The encoder, once a process."""
    return open_encoder(settings)


@cache
def network(settings: EncodeSettings) -> Backbone:
    """The backbone as the library gives it, once a process."""
    return build_backbone(settings.backbone, settings.weights, settings.image_size, settings.seed, settings.layer)


def measure_parts(settings: EncodeSettings, paths: tuple[Path, ...], least: float) -> dict[str, float]:
    """Seconds an image of each part alone: `engine`, `runtime`, `decoding`, `compression`.

    The forward pass is measured twice, through our engine and by its library alone; the bound takes the faster.

    Args:
        settings: of the encoder, and of what is compressed.
        paths: of the photographs.
        least: seconds that each part is measured.
    """
    encoder, (images, features, layout) = opened(settings), _held(settings, paths)
    batches = [images[start : start + settings.batch_size] for start in range(0, len(images), settings.batch_size)]
    runtime = _runtime(settings)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "engine": (lambda: _forward(encoder.engine, batches), len(images)),
            "runtime": (lambda: runtime(batches), len(images)),
            "decoding": (lambda: list(pool.map(lambda path: encoder.load(path.read_bytes()), paths)), len(paths)),
            "compression": (lambda: list(pool.map(lambda one: encode_row(one, layout, ""), features)), len(images)),
        }
        return {part: _each(call, count, least) for part, (call, count) in calls.items()}


def layout_of(settings: EncodeSettings, engine: Engine, features: Sequence[NDArray[np.float32]]) -> Layout:
    """The layout that the stage would choose."""
    scales = calibrate(features) if settings.dtype == "uint8" else None
    cells = engine.grid[0] * engine.grid[1]
    return Layout(engine.grid, cells, engine.channels, settings.dtype, settings.codec, settings.shard_images, scales)


@cache
def _held(settings: EncodeSettings, paths: tuple[Path, ...]) -> tuple[Images, list[NDArray[np.float32]], Layout]:
    """Some images' pixels and features, once a process."""
    engine = opened(settings).engine
    images = [opened(settings).load(path.read_bytes()) for path in paths[:HELD]]
    features = list(engine.start(images).result())
    return images, features, layout_of(settings, engine, features)


def _each(call: Callable[[], object], images: int, least: float) -> float:
    """Seconds an image, of as many calls as fill the least time."""
    call()
    calls, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < least or not calls:
        call()
        calls += 1
    return taken / (calls * images)


def _forward(engine: Engine, batches: Sequence[Images]) -> None:
    """Through our engine, with many batches in flight."""
    for _ in _results(engine.start(batch) for batch in batches):
        pass


def _results(futures: Iterator[Future[NDArray[np.float32]]]) -> Iterator[NDArray[np.float32]]:
    waiting: deque[Future[NDArray[np.float32]]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > IN_FLIGHT:
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


@cache
def _runtime(settings: EncodeSettings) -> Callable[[Sequence[Images]], None]:
    """The same network run by the engine's library alone."""
    return (_bare_openvino if opened(settings).engine.name == "openvino" else _bare_torch)(settings)


def _bare_openvino(settings: EncodeSettings) -> Callable[[Sequence[Images]], None]:
    import openvino

    from pipeline.vision.openvino_engine import compile_network

    backbone = network(settings)
    compiled = compile_network(backbone.module, backbone.preprocessing, opened(settings).engine.precision)
    queue = openvino.AsyncInferQueue(compiled)

    def run(batches: Sequence[Images]) -> None:
        for image in (image for batch in batches for image in batch):
            queue.start_async([image[None]])
        queue.wait_all()

    return run


def _bare_torch(settings: EncodeSettings) -> Callable[[Sequence[Images]], None]:
    from pipeline.hardware import find_device
    from pipeline.vision.torch_engine import DTYPES

    backbone, target = network(settings), find_device(settings.device, "encode.device")
    dtype = DTYPES[opened(settings).engine.precision]
    graph = Graph(fold_batch_norm(backbone.module), backbone.preprocessing, dtype).eval().requires_grad_(False)
    graph = graph.to(target).to(memory_format=torch.channels_last)

    @cache
    def there(size: int) -> torch.Tensor:
        return torch.zeros((size, settings.image_size, settings.image_size, 3), dtype=torch.uint8, device=target)

    def run(batches: Sequence[Images]) -> None:
        with torch.inference_mode():
            for batch in batches:
                graph(there(len(batch)))
        if target.type == "cuda":
            torch.cuda.synchronize(target)

    return run
