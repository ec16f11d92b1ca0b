"""`encode.backbone: imported`: from files of features to a cache."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.datasets.dataset import ImageFile
from pipeline.encoding.imported import import_features
from pipeline.errors import BusyError, CacheError, DataError, WeightsError
from pipeline.features.foreign import HDF5Array, NumpyFolder
from pipeline.features.integrity import work_folder, work_lock
from pipeline.features.interchange import Format, Keeping, export_features
from pipeline.features.reader import FeatureReader
from pipeline.features.store import Dtype, fingerprint_of
from pipeline.files import Workspace, lock, sha256
from pipeline.vision.encoder import ENCODING_VERSION, EncodeSettings, encoder_like
from tests.features.filled import filled, noise
from tests.features.foreign_files import array, folder, images, keys, table
from tests.import_graph import ROOT

IDS = [f"COCO_val2014_{number:012d}.jpg" for number in (9, 3, 391895, 17, 1, 8, 44)]
NUMBERS = ["9", "3", "391895", "17", "1", "8", "44"]


SETTINGS = EncodeSettings(
    backbone="imported",
    weights="",
    layer=None,
    image_size=64,
    dtype="float16",
    codec="zstd",
    engine="auto",
    precision="auto",
    batch_size=2,
    shard_images=3,
    seed=0,
    device="auto",
    workers=2,
    scheduler="local",
    resource=None,
    shared=None,
)


def settings(weights: Path | str, **changes: Any) -> EncodeSettings:
    return replace(SETTINGS, weights=str(weights), **changes)


def run(root: Path, weights: Path | str, own: list[ImageFile] | None = None, **changes: Any) -> FeatureReader:
    workspace = Workspace(root)
    import_features(workspace, own or images(*IDS), settings(weights, **changes), lambda _: None)
    return FeatureReader(workspace.features)


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_form_becomes_the_same_array(tmp_path: Path, dtype: Dtype) -> None:
    features = noise(7)
    sources = [
        table(tmp_path / "table.tsv", list(features), NUMBERS),
        keys(tmp_path / "keys.h5", list(features), NUMBERS),
        array(tmp_path / "array.h5", features, [int(number) for number in NUMBERS]),
        folder(tmp_path / "npy", list(features), NUMBERS),
        folder(tmp_path / "npz", list(features), IDS, ".npz"),
    ]
    for source in sources:
        reader = run(tmp_path / f"run of {source.name}", source, dtype=dtype)
        assert reader.ids == tuple(IDS)
        assert reader.grid is None
        assert np.array_equal(reader.read(range(7)), features.astype(dtype))
        assert reader.fields == {
            "encoding_version": ENCODING_VERSION,
            "backbone": "imported",
            "weights": source.name,
            "weights_sha256": reader.fields["weights_sha256"],
            "dtype": dtype,
        }
        assert source.is_dir() or reader.fields["weights_sha256"] == sha256(source)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("kind", "keeping"), [("hdf5", "array"), ("hdf5", "keys"), ("npz", "array"), ("npy", "array")])
def test_what_is_exported_is_imported_exactly(tmp_path: Path, dtype: Dtype, kind: Format, keeping: Keeping) -> None:
    ours = filled(tmp_path / "features.zarr", noise(7), IDS, dtype)
    export_features(ours, tmp_path / "out", kind, keeping)
    again = run(tmp_path / "again", tmp_path / "out", dtype=dtype)
    assert again.grid == ours.grid == (2, 3)
    assert np.array_equal(again.read(range(7)), ours.read(range(7)))
    assert again.dtype == ours.dtype


def test_a_uint8_cache_is_exported_restored_and_imported_as_float32_exactly(tmp_path: Path) -> None:
    ours = filled(tmp_path / "features.zarr", noise(7), IDS, "uint8")
    export_features(ours, tmp_path / "out", "hdf5", "array")
    again = run(tmp_path / "again", tmp_path / "out", dtype="float32")
    assert np.array_equal(again.read(range(7)), ours.restore(ours.read(range(7))))


def test_uint8_gets_scales_of_its_own(tmp_path: Path) -> None:
    features = noise(7)
    reader = run(tmp_path, folder(tmp_path / "npy", list(features), NUMBERS), dtype="uint8")
    assert reader.quantisation is not None
    found = reader.restore(reader.read(range(7)))
    assert np.abs(found - features).max() <= 0.5 * reader.quantisation.scales.max() * 1.001
    assert not np.array_equal(found, features)


def test_grids_are_kept_row_major_whatever_the_order_of_axes(tmp_path: Path) -> None:
    grid = np.random.default_rng(1).standard_normal((7, 2, 3, 8)).astype(np.float32)
    last = run(tmp_path / "last", folder(tmp_path / "a", list(grid), NUMBERS), dtype="float32")
    first = run(tmp_path / "first", array(tmp_path / "b", grid.transpose(0, 3, 1, 2), NUMBERS), dtype="float32")
    for reader in (last, first):
        assert reader.grid == (2, 3)
        assert np.array_equal(reader.read(range(7)), grid.reshape(7, 6, 8))


def test_the_store_is_that_of_any_other_run(tmp_path: Path) -> None:
    source = table(tmp_path / "table.tsv", list(noise(7)), NUMBERS)
    run(tmp_path / "a", source)
    run(tmp_path / "b", source)
    assert content(tmp_path / "a/data") == content(tmp_path / "b/data")


def test_finished_shards_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "npy", list(noise(7)), NUMBERS)
    run(tmp_path / "whole", source)
    read: list[str] = []
    before = NumpyFolder.read

    def stop_once(self: NumpyFolder, name: str) -> NDArray[Any]:
        read.append(name)
        if len(read) == 6:  # the third row of the second shard
            raise KeyboardInterrupt
        return before(self, name)

    monkeypatch.setattr(NumpyFolder, "read", stop_once)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", source)
    assert read == NUMBERS[:6]
    receipt = import_features(Workspace(tmp_path / "killed"), images(*IDS), settings(source), lambda _: None)
    assert read[6:] == NUMBERS[3:]
    assert receipt.found == 3
    assert content(tmp_path / "killed/data") == content(tmp_path / "whole/data")


def test_a_process_killed_in_the_middle_leaves_work_to_go_on_from(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((60, 40, 64)).astype(np.float32)
    ids = [str(number) for number in range(60)]
    source = folder(tmp_path / "npz", list(features), ids, ".npz")
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pipeline.features.foreign import NumpyFolder\n"
        "from tests.encoding.test_imported import run\n"
        "from tests.features.foreign_files import images\n"
        "read = NumpyFolder.read\n"
        "NumpyFolder.read = lambda self, name: (time.sleep(0.05), read(self, name))[1]\n"
        "run(Path(sys.argv[1]), sys.argv[2], images(*sys.argv[3].split()), dtype='float32')\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "killed"), str(source), " ".join(ids)]
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    work = Workspace(tmp_path / "killed").work("encode")
    deadline = time.monotonic() + 300
    while len(list(work.glob("*/*.shard"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 4 <= len(list(work.glob("*/*.shard"))) < 20
    again = run(tmp_path / "killed", source, images(*ids), dtype="float32")
    assert np.array_equal(again.read(range(60)), features)


def test_added_images_read_only_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = array(tmp_path / "array.h5", noise(7), NUMBERS)
    run(tmp_path, source, images(*IDS[:5]))
    read: list[str] = []
    before = HDF5Array.read

    def noted(self: HDF5Array, name: str) -> NDArray[Any]:
        read.append(name)
        return before(self, name)

    monkeypatch.setattr(HDF5Array, "read", noted)
    reader = run(tmp_path, source)
    assert read == NUMBERS[5:]
    assert np.array_equal(reader.read(range(7)), noise(7))


def test_an_image_that_is_now_called_otherwise_gets_the_features_of_its_new_name(tmp_path: Path) -> None:
    source = array(tmp_path / "array.h5", noise(3), ["a", "b", "c"])
    wrong = [ImageFile(name, name, f"content {number}") for number, name in enumerate("abc")]
    run(tmp_path, source, wrong)
    mended = [ImageFile(name, name, f"content {number}") for number, name in enumerate("bac")]
    reader = run(tmp_path, source, mended)
    assert np.array_equal(reader.read(range(3)), noise(3)[[1, 0, 2]])


def test_files_of_the_same_content_with_other_features_are_refused(tmp_path: Path) -> None:
    own = [ImageFile(name, name, "the same picture") for name in IDS]
    source = keys(tmp_path / "keys.h5", list(noise(7)), NUMBERS)
    told = f"{IDS[0]} and {IDS[1]} are the same file, byte for byte, .*keys.h5 has other features"
    with pytest.raises(DataError, match=told):
        run(tmp_path / "run", source, own)
    assert not (tmp_path / "run").exists()


def test_files_of_the_same_content_have_the_first_ones_features(tmp_path: Path) -> None:
    features = noise(7)
    features[5] = features[2] * np.float32(1.001)
    own = images(*IDS)
    own[5] = replace(own[5], sha256=own[2].sha256)
    reader = run(tmp_path / "run", keys(tmp_path / "keys.h5", list(features), NUMBERS), own, dtype="float32")
    found = reader.read(range(7))
    assert np.array_equal(found[5], features[2])
    assert np.array_equal(found[[0, 2, 6]], features[[0, 2, 6]])


def test_a_file_of_another_content_is_another_cache(tmp_path: Path) -> None:
    source = folder(tmp_path / "npy", list(noise(7)), NUMBERS)
    first = run(tmp_path, source)
    folder(source, list(noise(7) + 1), NUMBERS)
    second = run(tmp_path, source)
    assert second.fingerprint != first.fingerprint
    assert np.array_equal(second.read(range(7)), (noise(7) + 1).astype(np.float16))


def test_a_missing_image_is_told_before_anything_is_written(tmp_path: Path) -> None:
    source = table(tmp_path / "table.tsv", list(noise(5)), NUMBERS[:5])
    with pytest.raises(DataError, match=rf"has the features of 5 of 7 images; first missing: {IDS[5]}"):
        run(tmp_path / "run", source)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weights", ["default", "random", "gone/features.h5"])
def test_weights_must_name_a_file_or_folder(tmp_path: Path, weights: str) -> None:
    with pytest.raises(WeightsError, match=rf'encode\.weights names what to import: .* found "{weights}", where'):
        run(tmp_path, weights)


def test_a_path_is_relative_to_the_workspace(tmp_path: Path) -> None:
    array(tmp_path / "array.h5", noise(7), NUMBERS)
    assert run(tmp_path, "array.h5").ids == tuple(IDS)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "hold what is no number"), (7e4, "do not fit float16: one holds 70000, beyond 65504")],
)
def test_features_that_do_not_fit_are_named(tmp_path: Path, value: float, reason: str) -> None:
    features = noise(7)
    features[4, 2, 1] = value
    with pytest.raises(CacheError, match=rf"The features of {IDS[4]} {reason}"):
        run(tmp_path, table(tmp_path / "table.tsv", list(features), NUMBERS))


def test_a_second_run_at_the_same_time_is_refused(tmp_path: Path) -> None:
    source = table(tmp_path / "table.tsv", list(noise(7)), NUMBERS)
    with lock(work_lock(Workspace(tmp_path)), "encoding images"), pytest.raises(BusyError, match=str(os.getpid())):
        run(tmp_path, source)


def test_boxes_and_grids_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    source = table(tmp_path / "table.tsv", list(noise(7)), NUMBERS)
    import_features(Workspace(tmp_path), images(*IDS), settings(source), told.append)
    assert "6 (boxes, without a grid) regions of 5 channels" in told[0]
    source = folder(tmp_path / "npy", list(noise(7).reshape(7, 1, 2, 3, 5)[:, 0, ..., :4].repeat(2, -1)), NUMBERS)
    import_features(Workspace(tmp_path), images(*IDS), settings(source), told.append)
    assert any("2 x 3 regions of 8 channels" in line for line in told)


def test_no_encoder_is_like_imported_features(tmp_path: Path) -> None:
    source = table(tmp_path / "table.tsv", list(noise(7)), NUMBERS)
    fields = run(tmp_path, source).fields
    with pytest.raises(WeightsError, match=r"features were imported from table\.tsv, so the encoder .* is not known"):
        encoder_like(fields, settings(source))


def test_importing_runs_no_backbone_and_decodes_no_image(tmp_path: Path) -> None:
    source = array(tmp_path / "array.h5", noise(7), NUMBERS)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.encoding.test_imported import run\n"
        "run(Path(sys.argv[1]), sys.argv[2], dtype='float32')\n"
        "print({'torchvision', 'timm', 'openvino', 'PIL'} & set(sys.modules))"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path), str(source)]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_work_lies_where_every_encoders_does(tmp_path: Path) -> None:
    source = array(tmp_path / "array.h5", noise(7), NUMBERS)
    reader = run(tmp_path, source)
    assert len(list(work_folder(Workspace(tmp_path), fingerprint_of(reader.fields)).glob("*.shard"))) == 3
