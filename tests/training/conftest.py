"""A tiny cache with tiny captions, written by the project's own writer."""

import numpy as np

from pipeline.training.settings import TrainSettings

SETTINGS = TrainSettings(
    decoder="soft",
    decoder_options={"activation": "relu", "gate": True, "normalise": False, "tie": False},
    grid="native",
    embedding_size=6,
    attention_size=5,
    hidden_size=7,
    dropout=0.3,
    epochs=4,
    batch_images=3,
    learning_rate=0.02,
    weight_decay=0.01,
    warmup_epochs=0.5,
    schedule="cosine",
    label_smoothing=0.1,
    attention_penalty=1.0,
    clip_norm=5.0,
    monitor="bleu4",
    patience=4,
    seed=3,
    device="cpu",
    precision="float32",
)


class MemoryReader:
    """Stands for a feature reader: rows of random features, and a note of what was asked."""

    def __init__(self, images: int, grid: tuple[int, int] = (2, 3), channels: int = 5) -> None:
        size = (images, grid[0] * grid[1], channels)
        self.features = np.random.default_rng(9).standard_normal(size).astype(np.float16)
        self.grid, self.channels, self.asked = grid, channels, list[list[int]]()
        self.quantisation = None

    def start(self, rows: list[int]) -> "Ready":
        self.asked.append(list(rows))
        return Ready(self.features[list(rows)])


class Ready:
    def __init__(self, features: np.ndarray) -> None:
        self.features = features

    def result(self) -> np.ndarray:
        return self.features
