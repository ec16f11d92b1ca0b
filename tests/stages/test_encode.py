import json
from dataclasses import replace
from pathlib import Path

import pytest

import stages.encode
from pipeline.errors import MissingError
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace
from tests.encoding.quick import SETTINGS, draw


def test_encode_writes_the_cache_and_says_that_random_weights_are_a_demonstration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path)
    draw(workspace, range(7))
    stages.encode.run(workspace, SETTINGS, "unused: the project drew the images")
    told = capsys.readouterr().out
    assert "this is a demonstration" in told
    assert "2 x 2 regions of 512 channels, by torch in float32 on cpu" in told
    assert "Encoded 7 images" in told
    assert FeatureReader(workspace.features).read([0, 6]).shape == (2, 4, 512)
    record = json.loads((workspace.work("logs") / "encode.jsonl").read_text())
    assert (record["images"], record["encoded"]) == (7, 7)


def test_random_weights_in_int8_are_said_to_show_speed_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    workspace = Workspace(tmp_path)
    draw(workspace, range(3))
    stages.encode.run(workspace, replace(SETTINGS, engine="openvino", precision="int8"), "")
    told = capsys.readouterr().out
    assert "In int8 it demonstrates speed alone" in told
    assert "by openvino in int8 on cpu" in told


def test_auto_settings_run_on_this_machine(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    draw(workspace, range(3))
    stages.encode.run(workspace, replace(SETTINGS, engine="auto", precision="auto", device="auto"), "")
    assert len(FeatureReader(workspace.features).ids) == 3


def test_encode_before_ingest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match='Run "dvc repro ingest"'):
        stages.encode.run(Workspace(tmp_path), SETTINGS, "")
