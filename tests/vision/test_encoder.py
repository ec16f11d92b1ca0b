"""The encoder of a cache can be built again, elsewhere and later, or says what differs."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from pipeline.errors import WeightsError
from pipeline.files import sha256
from pipeline.vision.encoder import Encoder, encoder_like, open_encoder
from tests.encoding.quick import SETTINGS


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return open_encoder(SETTINGS)


def test_encoder_like_rebuilds_the_encoder_of_the_cache(encoder: Encoder, tmp_path: Path) -> None:
    here = replace(
        SETTINGS, backbone="resnet34", image_size=96, seed=0, precision="auto", batch_size=9, dtype="float32"
    )
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (43, 50, 3), dtype=np.uint8)).save(path)
    again, warnings = encoder_like(encoder.fields, here)
    assert warnings == []
    assert again.fields == encoder.fields
    assert again.encode_images([path]).tobytes() == encoder.encode_images([path]).tobytes()


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="openvino is not installed")
def test_encoder_like_rebuilds_int8_from_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = open_encoder(replace(SETTINGS, engine="auto", precision="int8"))
    assert (made.fields["engine"], made.fields["precision"]) == ("openvino", "int8")
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (43, 50, 3), dtype=np.uint8)).save(path)
    again, warnings = encoder_like(json.loads(json.dumps(made.fields)), replace(SETTINGS, precision="auto"))
    assert (again.fields, warnings) == (made.fields, [])
    assert again.encode_images([path]).tobytes() == made.encode_images([path]).tobytes()
    monkeypatch.setattr("pipeline.hardware.cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)  # where OpenVINO is not installed
    nearest, warnings = encoder_like(made.fields, SETTINGS)
    assert (nearest.engine.name, nearest.engine.precision) == ("torch", "float32")
    assert any("precision 'int8'; new images are encoded with 'float32'" in warning for warning in warnings)


def test_encoder_like_warns_of_each_difference(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.hardware.cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    made = {**encoder.fields, "engine": "openvino", "precision": "bfloat16", "batch_size": 2}
    again, warnings = encoder_like(made, SETTINGS)
    assert again.engine.name == "torch"
    assert len(warnings) == 2
    assert "engine 'openvino'; new images are encoded with 'torch'" in warnings[0]
    assert "precision 'bfloat16'; new images are encoded with 'float32'" in warnings[1]


def test_encoder_like_refuses_other_weights(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(models.resnet18(weights=None).state_dict(), path)
    fields = {**encoder.fields, "weights": "mine.pth", "weights_sha256": "0" * 64, "seed": None}
    with pytest.raises(WeightsError, match=r"expected SHA-256 0000.*found"):
        encoder_like(fields, replace(SETTINGS, weights=str(path)))
    with pytest.raises(WeightsError, match=r"state dict mine\.pth .*but encode\.weights is default"):
        encoder_like(fields, replace(SETTINGS, weights="default"))


def test_a_state_dicts_folder_does_not_enter_the_fields(tmp_path: Path) -> None:
    folder = tmp_path / "somewhere"
    folder.mkdir()
    torch.save(models.resnet18(weights=None).state_dict(), folder / "mine.pth")
    fields = open_encoder(replace(SETTINGS, weights=str(folder / "mine.pth"))).fields
    assert fields["weights"] == "mine.pth"
    assert fields["weights_sha256"] == sha256(folder / "mine.pth")
    assert "somewhere" not in str(fields)
