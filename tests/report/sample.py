"""A small finished run, written by hand: what the report reads, and no stage needed to make it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.datasets.dataset import Example, write_dataset
from pipeline.files import Workspace

GRID = (3, 5)
ALONE = 8  # the number of a word among all: "squares" of the third caption
REMEMBERED = 6  # "two" of the same
EVIL = '<script>document.title="owned"</script>'
CAPTIONS = ["a red circle", f"a {EVIL} dog", "two small squares", "", "a very big red circle", "one blue square here"]
NAMES = ["0.png", "1.png", "2.png", "3.png", "<b>4.png", "5.png"]
METRICS: dict[str, Any] = {
    "bleu1": 61.04,
    "bleu2": 42.6,
    "bleu3": 28.9,
    "bleu4": 19.37,
    "cider": 44.8,
    "rouge_l": 45.1,
    "bleu4_blind": 7.31,
    "images": 6,
    "mean_length": 3.2,
    "distinct": 0.834,
    "vocabulary_used": 0.171,
    "signature": "freezeframe <0.1.0>; split test; 6 images; beam 5",
    "caption_blind": "a red & blue shape",
}
PARAMS = """
data: {format: jsonl, images: /home/somebody/pictures, workers: 7}
encode: {backbone: resnet18, weights: WEIGHTS}
train: {decoder: soft, decoder_options: {gate: true, activation: null}, learning_rate: 2e-3,
        monitor: bleu4, cache: stream}
evaluate: {split: test, beam: 5}
"""


def attention() -> np.ndarray:
    """Each word looks at one region, its number among all words, and a little everywhere.

    `ALONE` looks at that one alone, and `REMEMBERED` comes from memory but for a quarter.
    """
    words = sum(len(caption.split()) for caption in CAPTIONS)
    weights = np.full((words, GRID[0] * GRID[1]), 0.02, dtype=np.float16)
    weights[np.arange(words), np.arange(words) % weights.shape[1]] = 0.72
    weights[ALONE : ALONE + 1] = np.eye(GRID[0] * GRID[1])[ALONE]
    weights[REMEMBERED : REMEMBERED + 1] *= 0.25
    return weights


def write(root: Path, drawn: bool = False, weights: str = "random", colour: str = "#c81ec8") -> Workspace:
    """Fill a workspace."""
    workspace = Workspace(root)
    for folder in (workspace.dataset, workspace.evaluate_results, root / "pictures"):
        folder.mkdir(parents=True)
    for name in NAMES:
        Image.new("RGB", (90, 60), colour).save(root / "pictures" / name)
    if drawn:
        (root / "pictures").rename(workspace.dataset / "images")
    examples = [Example(f"id-{name}", name, "test", ("x",), "0" * 64) for name in NAMES]
    write_dataset(workspace.dataset, examples, {"format": "jsonl", "drawn": drawn, "skipped": []})
    _write_results(workspace, [example.id for example in examples])
    workspace.params.write_text(PARAMS.replace("WEIGHTS", weights), encoding="utf-8")
    return workspace


def _write_results(workspace: Workspace, ids: list[str]) -> None:
    folder = workspace.evaluate_results
    references = [[f"a red circle number {number}", f"{EVIL} two squares {number}"] for number in range(len(ids))]
    entries = [
        {"image": image, "caption": caption, "references": others, "log_probability": -1.5 - number}
        for number, (image, caption, others) in enumerate(zip(ids, CAPTIONS, references, strict=True))
    ]
    lengths = [len(caption.split()) for caption in CAPTIONS]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    np.savez(folder / "attention.npz", weights=attention(), offsets=offsets, grid=np.array(GRID, dtype=np.int64))
    for name, value in {
        "metrics": METRICS,
        "captions": entries,
        "skipped": [{"image": EVIL, "reason": "empty"}],
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    for name, values in {"train/loss": (4, 2), "validation/loss": (5, 3), "validation/bleu4": (1.5, 19.5)}.items():
        path = workspace.train_results / "plots" / "metrics" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{step}\t{value}\n" for step, value in enumerate(values))
        path.write_text(f"step\t{path.stem}\n{lines}", encoding="utf-8")
    (workspace.train_results / "metrics.json").write_text('{"kept_epoch": 2}', encoding="utf-8")
