import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import CacheError, DataError, SettingsError, SpaceError
from pipeline.features.foreign import open_foreign
from pipeline.features.interchange import Format, Keeping, export_features
from pipeline.features.matching import find_names
from pipeline.features.store import Dtype
from tests.features.filled import FIELDS, filled, noise
from tests.features.foreign_files import images
from tests.room import room_for

IDS = ["a.jpg", "val/b.jpg", "../c.jpg", ".d", "e%2Ff.jpg", "e/f.jpg", "ü ✓.jpg"]
FORMS: list[tuple[Format, Keeping]] = [("hdf5", "array"), ("hdf5", "keys"), ("npz", "array"), ("npy", "array")]


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
@pytest.mark.parametrize(("kind", "keeping"), FORMS)
def test_every_form_holds_the_features_exactly(tmp_path: Path, dtype: Dtype, kind: Format, keeping: Keeping) -> None:
    reader = filled(tmp_path / "features.zarr", noise(7), IDS, dtype)
    out = tmp_path / "deep" / "out"
    written = export_features(reader, out, kind, keeping)
    assert written == (np.float32 if dtype == "uint8" else np.dtype(dtype))
    expected = reader.restore(reader.read(range(7)))
    assert dtype == "uint8" or np.array_equal(expected, noise(7))
    with open_foreign(out) as foreign:
        assert foreign.grid == (2, 3)
        names = find_names(foreign, images(*IDS))
        for row, name in enumerate(IDS):
            found = foreign.read(names[name])
            assert found.dtype == written
            assert foreign.form(names[name]) == ((6, 5), written)
            assert np.array_equal(found, expected[row])


def test_one_array_is_what_h5py_reads(tmp_path: Path) -> None:
    reader = filled(tmp_path / "features.zarr", noise(7), IDS)
    export_features(reader, tmp_path / "out.h5", "hdf5", "array")
    with h5py.File(tmp_path / "out.h5", "r") as file:
        assert np.array_equal(file["features"][:], noise(7).astype(np.float16))
        assert [name.decode() for name in file["ids"][:]] == IDS
        assert tuple(file.attrs["grid"]) == (2, 3)
        assert json.loads(file.attrs["fields"]) == FIELDS
        assert file.attrs["fingerprint"] == reader.fingerprint


def test_names_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    reader = filled(tmp_path / "features.zarr", noise(7), IDS)
    export_features(reader, tmp_path / "out", "npy", "array")
    assert entries(tmp_path / "out") == sorted(
        [
            "features.json",
            "a.jpg.npy",
            "val%2Fb.jpg.npy",
            "%2E.%2Fc.jpg.npy",
            "%2Ed.npy",
            "e%252Ff.jpg.npy",
            "e%2Ff.jpg.npy",
            "ü ✓.jpg.npy",
        ]
    )
    assert not (tmp_path / "c.jpg.npy").exists()
    assert np.array_equal(np.load(tmp_path / "out/val%2Fb.jpg.npy", allow_pickle=False), noise(7)[1])


def test_an_npz_holds_feat(tmp_path: Path) -> None:
    reader = filled(tmp_path / "features.zarr", noise(3), ["1", "2", "3"])
    export_features(reader, tmp_path / "out", "npz", "array")
    with np.load(tmp_path / "out/2.npz", allow_pickle=False) as archive:
        assert archive.files == ["feat"]
        assert np.array_equal(archive["feat"], noise(3)[1])


@pytest.mark.parametrize(("kind", "keeping"), FORMS)
def test_boxes_have_no_grid(tmp_path: Path, kind: Format, keeping: Keeping) -> None:
    reader = filled(tmp_path / "features.zarr", noise(3), ["1", "2", "3"], grid=None)
    export_features(reader, tmp_path / "out", kind, keeping)
    with open_foreign(tmp_path / "out") as foreign:
        assert foreign.grid is None


def test_few_rows_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = filled(tmp_path / "features.zarr", noise(7), IDS)
    asked: list[int] = []
    read = reader.read

    def counted(rows: Sequence[int]) -> NDArray[Any]:
        asked.append(len(rows))
        return read(rows)

    monkeypatch.setattr(reader, "read", counted)
    monkeypatch.setattr("pipeline.features.interchange._BLOCK_BYTES", 3 * 6 * 5 * 4)
    export_features(reader, tmp_path / "out", "hdf5", "array")
    assert asked == [3, 3, 1]
    with h5py.File(tmp_path / "out", "r") as file:
        assert np.array_equal(file["features"][:], noise(7))


@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, kind: Format) -> None:
    reader = filled(tmp_path / "features.zarr", noise(3), ["1", "2", "3"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("precious")
    with pytest.raises(SettingsError, match=r"out is there already, .* replaces nothing; name a new (file|folder)"):
        export_features(reader, tmp_path / "out", kind, "array")
    assert entries(tmp_path / "out") == ["mine.txt"]


@pytest.mark.parametrize(("kind", "keeping"), FORMS)
def test_a_damaged_cache_leaves_nothing_behind(tmp_path: Path, kind: Format, keeping: Keeping) -> None:
    reader = filled(tmp_path / "cache/features.zarr", noise(7), IDS)
    shard = tmp_path / "cache/features.zarr/regions/c/2/0/0"
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    with pytest.raises(CacheError, match="is damaged"):
        export_features(reader, tmp_path / "out", kind, keeping)
    assert entries(tmp_path) == ["cache"]


def test_an_id_too_long_for_a_file_is_told(tmp_path: Path) -> None:
    reader = filled(tmp_path / "features.zarr", noise(1), ["x" * 300])
    with pytest.raises(DataError, match=r"too long for the name of a file\. Export with --format hdf5"):
        export_features(reader, tmp_path / "out", "npy", "array")
    export_features(reader, tmp_path / "out.h5", "hdf5", "keys")


def test_what_cannot_fit_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = filled(tmp_path / "cache/features.zarr", noise(7), IDS)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 7 * 6 * 5 * 2 - 1})())
    with pytest.raises(SpaceError, match=r"needs 0\.0 GB, but .* has 0\.0 GB free"):
        export_features(reader, tmp_path / "out", "hdf5", "array")
    assert entries(tmp_path) == ["cache"]


@pytest.mark.parametrize(("kind", "keeping"), FORMS)
def test_a_disk_that_fills_while_writing_is_told_and_leaves_nothing_behind(
    tmp_path: Path, kind: Format, keeping: Keeping
) -> None:
    reader = filled(tmp_path / "cache/features.zarr", noise(7), IDS)
    with room_for(100), pytest.raises(SpaceError, match=r"The disk that holds .* is full: out could not be written"):
        export_features(reader, tmp_path / "out", kind, keeping)
    assert entries(tmp_path) == ["cache"]


@pytest.mark.parametrize(("kind", "wanted"), [("npz", "folder"), ("npy", "folder"), ("hdf5", "file")])
def test_a_file_that_is_there_is_left_alone(tmp_path: Path, kind: Format, wanted: str) -> None:
    reader = filled(tmp_path / "cache/features.zarr", noise(3), ["1", "2", "3"])
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(SettingsError, match=rf"mine is there already, .* replaces nothing; name a new {wanted}"):
        export_features(reader, tmp_path / "mine", kind, "array")
    assert (tmp_path / "mine").read_text() == "precious"
