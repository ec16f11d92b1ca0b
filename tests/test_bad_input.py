"""Bad input through the command line: one paragraph that names it, status 1, and nothing half-written.

The wording of each message is held by the tests of the module that raises it; here is the whole list, as users meet it.
"""

import errno
import json
import re
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from ruamel.yaml import YAML

from cli import main
from pipeline.files import Workspace
from pipeline.language.vocabulary import MARKS
from tests import tiny
from tests.datasets.builders import write_images
from tests.vision.test_images import huge_png

NAMES = [f"{number:02d}.png" for number in range(12)]
Prepare = Callable[[Workspace], dict[str, Any]]


def told(workspace: Workspace, stage: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a stage that must fail says, with what that leaves checked."""
    monkeypatch.chdir(workspace.root)
    outs = [workspace.dataset, workspace.tokens, workspace.features, workspace.captioner, workspace.evaluate_results]
    before = {out: tiny.content(out) for out in outs if out.exists()}
    result = CliRunner().invoke(main, [stage])
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert {out: tiny.content(out) for out in outs if out.exists()} == before
    assert not list(workspace.root.rglob("*.partial"))
    return result.stderr[result.stderr.rindex("Error: ") :]


def photographs(workspace: Workspace, captions: str | None = None) -> dict[str, Any]:
    """Images and captions of a user's, and the settings that point to them."""
    write_images(workspace.root / "images", *NAMES)
    rows = "".join(f"{name},A thing,{('train', 'val', 'test')[n % 3]}\n" for n, name in enumerate(NAMES))
    (workspace.root / "captions.txt").write_text(captions or f"image,caption,split\n{rows}", encoding="utf-8")
    paths = {f"data__{key}": str(workspace.root / "captions.txt") for key in ("captions", "splits")}
    return {"data__format": "auto", "data__images": str(workspace.root / "images"), **paths}


def missing_folder(workspace: Workspace) -> dict[str, Any]:
    return {**photographs(workspace), "data__images": str(workspace.root / "nowhere")}


def empty_folder(workspace: Workspace) -> dict[str, Any]:
    (workspace.root / "empty").mkdir()
    return {**photographs(workspace), "data__images": str(workspace.root / "empty")}


def missing_captions(workspace: Workspace) -> dict[str, Any]:
    settings = photographs(workspace)
    (workspace.root / "captions.txt").unlink()
    return settings


def bad_image(content: Callable[[bytes], bytes]) -> Prepare:
    def prepare(workspace: Workspace) -> dict[str, Any]:
        settings = photographs(workspace)
        path = workspace.root / "images" / NAMES[4]
        path.write_bytes(content(path.read_bytes()))
        return settings

    return prepare


def text(content: str, data_format: str = "auto") -> Prepare:
    return lambda workspace: {**photographs(workspace, content), "data__format": data_format}


SOURCES: dict[str, tuple[Prepare, str]] = {
    "missing folder": (missing_folder, r"nowhere does not exist"),
    "empty folder": (empty_folder, r"empty holds no images"),
    "missing captions": (missing_captions, r"captions\.txt does not exist"),
    "no captions": (text("image,caption\n"), r"captions\.txt holds no captions"),
    "empty captions": (text(" \n"), r"captions\.txt is empty: no captions"),
    "wrong column": (text("file,text\n00.png,A\n"), r"expected the columns image and caption, its first line has file"),
    "malformed JSON": (text('{"images": [\n  {"id": 1},,\n]}'), r"is not valid JSON: .* at line 2, column 13"),
    "JSON nested without end": (text("[" * 100_000), "is nested too deeply to be read"),
    "a line nested without end": (text('{"image": ' + "[" * 100_000, "jsonl"), "line 1: nested too deeply to be read"),
    "malformed line": (text('{"image": "00.png",\n', "jsonl"), r"line 1: not valid JSON: .* at column"),
    "truncated image": (bad_image(lambda content: content[:50]), r"1 image cannot be decoded in .*\n  04\.png: "),
    "empty image": (bad_image(lambda _: b""), r"\n  04\.png: the file is empty"),
    "text as image": (bad_image(lambda _: b"hello, I am text"), r"\n  04\.png: .*not an image of a known kind"),
    "huge image": (bad_image(lambda _: huge_png(60000, 60000)), r"\n  04\.png: too many pixels"),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "message"), SOURCES.values(), ids=SOURCES)
def test_a_bad_source_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Prepare, message: str) -> None:
    workspace = Workspace(tmp_path)
    tiny.write_params(workspace, **prepare(workspace))
    assert re.search(message, told(workspace, "ingest", monkeypatch))
    assert not workspace.dataset.exists()


def other_state_dict(workspace: Workspace) -> dict[str, Any]:
    path = workspace.root / "mine.pth"
    torch.save({"conv1.weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, path)
    return {"encode__weights": str(path)}


ENCODERS: dict[str, tuple[Prepare, str]] = {
    "state dict that does not fit": (
        other_state_dict, r"mine\.pth does not fit resnet18: \d+ missing .*1 unexpected \(extra\).*of another shape",
    ),
    "missing state dict": (lambda _: {"encode__weights": "gone.pth"}, r"gone\.pth"),
    "unknown weights": (lambda _: {"encode__weights": "IMAGENET1K_V7"}, r"IMAGENET1K_V7.*IMAGENET1K_V1"),
    "unknown backbone": (lambda _: {"encode__backbone": "resnet19"}, r"resnet19.*resnet18"),
    "no network": (lambda _: {"encode__weights": "default"}, r"could not be fetched.*give its path in encode\.weights"),
    "unknown device": (lambda _: {"encode__device": "cuda:99"}, r"encode\.device cuda:99 is not on this machine"),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "message"), ENCODERS.values(), ids=ENCODERS)
def test_a_bad_encoder_is_told(
    encoded: Workspace, monkeypatch: pytest.MonkeyPatch, prepare: Prepare, message: str
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(encoded.root / "torch"))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    tiny.write_params(encoded, **prepare(encoded))
    assert re.search(message, told(encoded, "encode", monkeypatch), re.DOTALL)


def test_a_full_disk_while_encoding_is_told(encoded: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tiny.write_params(encoded, encode__seed=1)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert "is full" in told(encoded, "encode", monkeypatch)


def damaged(edit: Callable[[Workspace], object]) -> Prepare:
    def prepare(workspace: Workspace) -> dict[str, Any]:
        edit(workspace)
        return {}

    return prepare


def other_fingerprint(workspace: Workspace) -> None:
    path = workspace.captioner / "config.json"
    config = json.loads(path.read_text())
    config["features"] = "0" * 64
    config["encoding"]["image_size"] = 448
    path.write_text(json.dumps(config))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-9])


def other_captions(workspace: Workspace) -> None:
    path = workspace.dataset / "dataset.jsonl"
    content = path.read_text()
    path.unlink()
    path.write_text(content.replace("large", "huge"))
    assert path.read_text() != content


STATES: dict[str, tuple[str, Prepare, str]] = {
    "cache of another fingerprint": (
        "evaluate", damaged(other_fingerprint), r"encoded otherwise: image_size: expected 448, found 64\.",
    ),
    "cache without manifest": (
        "train", damaged(lambda place: (place.features / "manifest.json").unlink()), r"has no manifest\.json",
    ),
    "missing shard": (
        "train", damaged(lambda place: (place.features / "regions/c/1/0/0").unlink()), r"lacks 1 shard \(first: reg",
    ),
    "truncated shard": (
        "train", damaged(lambda place: cut(place.features / "regions/c/1/0/0")), r"1 shard .* of another size than",
    ),
    "another vocabulary": (
        "evaluate",
        damaged(lambda place: (place.tokens / "vocabulary.json").write_text(json.dumps({"words": [*MARKS, "a"]}))),
        r"was trained with another vocabulary",
    ),
    "damaged weights": ("evaluate", damaged(lambda place: cut(place.captioner / "model.safetensors")), r"is damaged"),
    "damaged tokens": ("train", damaged(lambda place: cut(place.tokens / "captions.npz")), r"captions\.npz"),
    "tokens of another data set": ("train", damaged(other_captions), r"from another data set .*dvc repro tokenize"),
    "device of train": ("train", lambda _: {"train__device": "cuda:99"}, r"train\.device cuda:99 is not on this"),
    "device of evaluate": ("evaluate", lambda _: {"evaluate__device": "cuda:99"}, r"evaluate\.device cuda:99 is not"),
}  # fmt: skip


@pytest.mark.parametrize(("stage", "prepare", "message"), STATES.values(), ids=STATES)
def test_a_bad_state_is_told(
    evaluated: Workspace, monkeypatch: pytest.MonkeyPatch, stage: str, prepare: Prepare, message: str
) -> None:
    tiny.write_params(evaluated, **prepare(evaluated))
    assert re.search(message, told(evaluated, stage, monkeypatch))


def test_broken_settings_are_told_by_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    tiny.write_params(workspace)
    document = YAML(typ="safe", pure=True).load(workspace.params)
    document["encode"]["backbnoe"] = document["encode"].pop("backbone")
    with workspace.params.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(document, file)
    message = told(workspace, "ingest", monkeypatch)
    assert "encode.backbnoe: unknown key; did you mean backbone?" in message
    assert "encode.backbone: missing" in message
