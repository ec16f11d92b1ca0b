"""A whole workspace in about a second: drawn shapes, tokens, a cache of random features, a small decoder."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.commands.settings import check_settings
from pipeline.files import Workspace, sha256
from pipeline.settings import read_params
from stages import encode, evaluate, ingest, tokenize, train
from tests.import_graph import ROOT

IMAGES = 30  # 24 of training, 3 of validation, 3 of test
CHANGES: dict[str, Any] = {
    "data.drawn_images": IMAGES,
    "data.workers": 2,
    "tokenize.min_count": 1,
    "encode.image_size": 64,
    "encode.engine": "torch",
    "encode.precision": "float32",
    "encode.batch_size": 5,
    "encode.shard_images": 7,
    "encode.device": "cpu",
    "encode.workers": 2,
    "train.embedding_size": 11,
    "train.attention_size": 7,
    "train.hidden_size": 24,
    "train.dropout": 0.1,
    "train.epochs": 6,
    "train.batch_images": 5,
    "train.learning_rate": 0.03,
    "train.device": "cpu",
    "train.precision": "float32",
    "evaluate.beam": 3,
    "evaluate.length_penalty": 1.0,
    "evaluate.max_length": 15,
    "evaluate.device": "cpu",
    "report.gallery": 3,
}


def params(**changes: Any) -> dict[str, Any]:
    """The shipped settings made tiny; further changes as `train__epochs=2`."""
    document = read_params(ROOT / "params.yaml")
    for name, value in {**CHANGES, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        section, _, key = name.partition(".")
        assert key in document[section], name
        document[section][key] = value
    return document


def settings(section: str, **changes: Any) -> Any:
    """One section's settings object."""
    return check_settings(params(**changes), "tiny")[section]


def write_params(workspace: Workspace, **changes: Any) -> None:
    """Write `params.yaml`."""
    workspace.root.mkdir(parents=True, exist_ok=True)
    with workspace.params.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(params(**changes), file)


def encoded(root: Path, **changes: Any) -> Workspace:
    """A workspace up to its cache."""
    workspace = Workspace(root)
    write_params(workspace, **changes)
    ingest.run(workspace, settings("data", **changes))
    tokenize.run(workspace, settings("tokenize", **changes))
    encode.run(workspace, settings("encode", **changes), "unused")
    return workspace


def trained(workspace: Workspace, **changes: Any) -> Workspace:
    """The same with a captioner."""
    train.run(workspace, settings("train", **changes))
    return workspace


def evaluated(workspace: Workspace, **changes: Any) -> Workspace:
    """The same with scores."""
    evaluate.run(workspace, settings("evaluate", **changes))
    return workspace


def content(*places: Path) -> dict[str, str]:
    """The hash of every file at or below some places, by path from the last folder they share."""
    return {
        str(path.relative_to(place.parent)): sha256(path)
        for place in places
        for path in sorted([place] if place.is_file() else place.rglob("*"))
        if path.is_file()
    }
