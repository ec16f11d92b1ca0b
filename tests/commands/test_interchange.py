"""`freezeframe cache export` and `cache import`, as they are typed."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from cli import main
from pipeline.commands.settings import read_settings
from pipeline.commands.use import use
from pipeline.encoding.imported import import_features
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace
from pipeline.settings import read_params
from tests.datasets.packed import write_packed
from tests.features.filled import filled, noise
from tests.features.foreign_files import array, folder, images
from tests.import_graph import ROOT

IDS = ["a.jpg", "b.jpg", "c.jpg"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The shipped settings, and a cache of three images."""
    root = tmp_path / "work"
    shutil.copytree(ROOT / "params", root / "params")
    shutil.copy(ROOT / "params.yaml", root)
    filled(root / "data" / "features.zarr", noise(3), IDS)
    monkeypatch.chdir(root)
    return Workspace(root)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_export_writes_and_tells(workspace: Workspace, tmp_path: Path) -> None:
    result = run("cache", "export", "--format", "hdf5", "--layout", "keys", str(tmp_path / "out.h5"))
    assert result.exit_code == 0, result.output
    assert "Wrote the features of 3 images to" in result.output
    assert "6 regions (2 x 3) of 5 channels, float16." in result.output
    with h5py.File(tmp_path / "out.h5", "r") as file:
        assert np.array_equal(file["b.jpg"][:], noise(3)[1])
    assert FeatureReader(workspace.features).ids == tuple(IDS)


def test_a_layout_is_of_hdf5_alone(tmp_path: Path) -> None:
    result = run("cache", "export", "--format", "npz", "--layout", "keys", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "--layout is for --format hdf5" in result.output
    assert not (tmp_path / "out").exists()


def test_a_restored_cache_is_said(workspace: Workspace, tmp_path: Path) -> None:
    shutil.rmtree(workspace.features)
    filled(workspace.features, noise(3), IDS, "uint8", None)
    result = run("cache", "export", "--format", "npz", str(tmp_path / "out"))
    assert "6 regions (no grid) of 5 channels, float32, restored from uint8." in result.output


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("arguments", [["out"], ["--format", "csv", "out"], ["--format", "npy"]])
def test_a_format_and_a_path_are_needed(arguments: list[str]) -> None:
    assert run("cache", "export", *arguments).exit_code == 2


def test_without_a_cache_export_says_what_to_run(workspace: Workspace) -> None:
    shutil.rmtree(workspace.features)
    result = run("cache", "export", "--format", "npy", "out")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert 'Run "dvc repro encode"' in result.stderr


def test_import_sets_two_settings_and_keeps_the_comments(workspace: Workspace, tmp_path: Path) -> None:
    source = folder(tmp_path / "my: features #1", list(noise(3)), IDS)
    before = workspace.params.read_text()
    result = run("cache", "import", str(source))
    assert result.exit_code == 0, result.output
    assert "(3 images there)" in result.output and 'Run "dvc repro".' in result.output
    found = read_params(workspace.params)
    expected = read_params(ROOT / "params.yaml")
    expected["encode"] |= {"backbone": "imported", "weights": str(source)}
    assert found == expected
    after = workspace.params.read_text()
    assert [line.partition(" #")[2] for line in after.splitlines() if "weights:" not in line] == [
        line.partition(" #")[2] for line in before.splitlines() if "weights:" not in line
    ]


def test_what_import_sets_is_what_the_stage_reads(workspace: Workspace, tmp_path: Path) -> None:
    source = array(tmp_path / "array.h5", noise(3), IDS)
    run("cache", "import", str(source))
    import_features(workspace, images(*reversed(IDS)), read_settings(workspace.params)["encode"], lambda _: None)
    assert np.array_equal(FeatureReader(workspace.features).read(range(3)), noise(3)[::-1])


@pytest.mark.parametrize("name", ["gone.h5", "notes.txt", "empty"])
def test_what_cannot_be_imported_leaves_the_settings(workspace: Workspace, tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("no features")
    (tmp_path / "empty").mkdir()
    before = workspace.params.read_bytes()
    result = run("cache", "import", str(tmp_path / name))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert workspace.params.read_bytes() == before


def test_use_makes_a_folder_of_features_absolute(workspace: Workspace) -> None:
    folder(workspace.root / "mine", list(noise(3)), IDS)
    use(workspace, [], None, None, None, ["encode.backbone=imported", "encode.weights=mine"])
    assert read_params(workspace.params)["encode"]["weights"] == str(workspace.root / "mine")
    use(workspace, [], None, None, None, ["encode.backbone=resnet18", "encode.weights=default"])
    (workspace.root / "default").mkdir()
    use(workspace, [], None, None, None, ["train.epochs=3"])
    assert read_params(workspace.params)["encode"]["weights"] == "default"


def test_use_points_to_a_folder_of_packed_files(workspace: Workspace, tmp_path: Path) -> None:
    place = str(write_packed(tmp_path / "packed"))
    use(workspace, ["own"], place, place, None, ["data.format=hdf5"])
    data = read_settings(workspace.params)["data"]
    assert (data.format, data.images, data.captions, data.splits) == ("hdf5", place, place, place)
