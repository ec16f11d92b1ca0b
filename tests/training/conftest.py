"""A tiny cache with tiny captions, written by the project's own writer."""

import numpy as np

from pipeline.features.store import Layout
from pipeline.training.settings import SelfCriticalSettings, TrainSettings

SETTINGS = TrainSettings(
    decoder="soft",
    decoder_options={"activation": "relu", "gate": True, "normalise": False, "tie": False},
    initial_weights="default",
    grid="native",
    embedding_size=6,
    attention_size=5,
    hidden_size=7,
    dropout=0.3,
    epochs=4,
    batch_images=3,
    accumulate=1,
    learning_rate=0.02,
    weight_decay=0.01,
    warmup_epochs=0.5,
    schedule="cosine",
    label_smoothing=0.1,
    attention_penalty=1.0,
    clip_norm=5.0,
    monitor="bleu4",
    patience=4,
    average=0.0,
    self_critical=SelfCriticalSettings(epochs=0, samples=3, temperature=1.0, dropout=True, learning_rate=0.005),
    tail=None,
    tail_learning_rate=0.001,
    seed=3,
    order_seed=2,
    shuffle_window=1000,
    cache="auto",
    device="cpu",
    precision="float32",
)


class MemoryReader:
    """Stands for a feature reader: rows of random features, and a note of what was asked."""

    def __init__(self, images: int, grid: tuple[int, int] = (2, 3), channels: int = 5, shard_images: int = 4) -> None:
        size = (images, grid[0] * grid[1], channels)
        self.features = np.random.default_rng(9).standard_normal(size).astype(np.float16)
        self.grid, self.channels, self.asked = grid, channels, list[list[int]]()
        self.quantisation = None
        self.layout = Layout(grid, grid[0] * grid[1], channels, "float16", "none", shard_images, None)

    def start(self, rows: list[int], target: np.ndarray) -> "Ready":
        self.asked.append(list(rows))
        target[:] = self.features[list(rows)]
        return Ready(target)


class Ready:
    def __init__(self, features: np.ndarray) -> None:
        self.features = features

    def result(self) -> np.ndarray:
        return self.features
