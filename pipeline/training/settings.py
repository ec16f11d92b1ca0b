"""The section `train`.

Owns its keys and bounds. Does not know how they are used, and loads no torch.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pipeline.settings import Range


@dataclass(frozen=True)
class SelfCriticalSettings:
    """The phase after cross-entropy; `params.yaml` explains each key."""

    epochs: Annotated[int, Range(0, 10_000)]
    samples: Annotated[int, Range(2, 100)]
    temperature: Annotated[float, Range(0.05, 5)]
    dropout: bool
    learning_rate: Annotated[float, Range(1e-9, 10)]


@dataclass(frozen=True)
class TrainSettings:
    """How a decoder is built and trained; `params.yaml` explains each key."""

    decoder: str
    decoder_options: dict[str, Any]
    initial_weights: Literal["default", "small"]
    grid: Annotated[int, Range(1, 64)] | Literal["native"]
    embedding_size: Annotated[int, Range(1, 8192)]
    attention_size: Annotated[int, Range(1, 8192)]
    hidden_size: Annotated[int, Range(1, 8192)]
    dropout: Annotated[float, Range(0, 1, open_ended=True)]
    epochs: Annotated[int, Range(1, 10_000)]
    batch_images: Annotated[int, Range(1, 4096)]
    accumulate: Annotated[int, Range(1, 4096)]
    learning_rate: Annotated[float, Range(1e-9, 10)]
    weight_decay: Annotated[float, Range(0, 1)]
    warmup_epochs: Annotated[float, Range(0, 1000)]
    schedule: Literal["cosine", "plateau"]
    label_smoothing: Annotated[float, Range(0, 1, open_ended=True)]
    attention_penalty: Annotated[float, Range(0, 1000)]
    clip_norm: Annotated[float, Range(1e-6, 1e6)]
    monitor: Literal["bleu4", "cider"]
    patience: Annotated[int, Range(1, 10_000)]
    average: Annotated[float, Range(0, 1, open_ended=True)]
    self_critical: SelfCriticalSettings
    tail: str | None
    tail_learning_rate: Annotated[float, Range(1e-9, 10)]
    seed: Annotated[int, Range(0, 2**32 - 1)]
    order_seed: Annotated[int, Range(0, 2**32 - 1)]
    shuffle_window: Annotated[int, Range(1, None)]
    cache: Literal["auto", "memory", "stream"]
    device: str
    precision: Literal["auto", "float32", "bfloat16"]
