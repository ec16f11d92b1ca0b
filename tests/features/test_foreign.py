from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import DataError, MissingError
from pipeline.features.foreign import open_foreign
from pipeline.features.matching import Regions, axes, common_axes
from tests.features.filled import noise
from tests.features.foreign_files import array, folder, keys, table

IDS = ["7", "12", "305"]


@pytest.mark.parametrize(
    ("write", "form"),
    [
        (lambda path: table(path, list(noise(3)), IDS), "table"),
        (lambda path: keys(path, list(noise(3)), IDS), "keys"),
        (lambda path: keys(path, list(noise(3)), [f"features/{name}" for name in IDS]), "groups"),
        (lambda path: array(path, noise(3), IDS), "array"),
        (lambda path: array(path, noise(3), [7, 12, 305], "image_features", "image_ids"), "numbers"),
        (lambda path: array(path, noise(3), IDS, "whatever"), "the only array"),
        (lambda path: folder(path, list(noise(3)), IDS), "npy"),
        (lambda path: folder(path, list(noise(3)), IDS, ".npz"), "npz"),
        (lambda path: folder(path, list(noise(3).astype(">f8")), IDS), "another byte order"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_form_is_recognised_and_read_exactly(tmp_path: Path, write: Callable[[Path], Path], form: str) -> None:
    with open_foreign(write(tmp_path / "source")) as foreign:
        prefix = "features/" if form == "groups" else ""
        assert sorted(foreign.names()) == sorted(prefix + name for name in IDS)
        for row in (2, 0, 1):
            name = prefix + IDS[row]
            assert foreign.form(name)[0] == (6, 5)
            found = axes(foreign.form(name), None).of(foreign.read(name))
            assert found.dtype == np.float32
            assert np.array_equal(found, noise(3)[row])


def common(path: Path) -> Regions:
    with open_foreign(path) as foreign:
        return common_axes(foreign, {name: name for name in foreign.names()})


def test_an_array_with_a_grid_keeps_it(tmp_path: Path) -> None:
    assert common(array(tmp_path / "source", noise(3).reshape(3, 2, 3, 5)[..., :4].repeat(2, 3), IDS)).grid == (2, 3)
    with h5py.File(array(tmp_path / "said", noise(3), IDS), "a") as file:
        file.attrs["grid"] = (3, 2)
    assert common(tmp_path / "said").grid == (3, 2)


def test_a_table_may_have_a_header(tmp_path: Path) -> None:
    path = table(tmp_path / "source.tsv", list(noise(3)), IDS)
    path.write_text("image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures\n" + path.read_text())
    with open_foreign(path) as foreign:
        assert list(foreign.names()) == IDS
        assert np.array_equal(foreign.read("12"), noise(3)[1])


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> Path:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:2], lines[2][:40]], r"line 3: expected the columns image_id, .* found 5 of them"),
        (lambda lines: [*lines[:2], lines[2][:-30]], r"line 3: .* bytes of features are no whole vectors for 6 boxes"),
        (lambda lines: [lines[0], lines[0]], r"line 2: the image 7 stands there twice"),
        (lambda lines: [lines[0], "12\t640\t480\tsix\tAA==\tAA==\n"], r"line 2: expected the columns"),
        (lambda lines: [lines[0], "12\t640\t480\t0\t\t\n"], r"line 2: 0 bytes of features are no whole vectors"),
    ],
)
def test_a_damaged_table_is_told_by_its_line(
    tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    path = rewrite(table(tmp_path / "source.tsv", list(noise(3)), IDS), change)
    with pytest.raises(DataError, match=message + r".*cut short"):
        open_foreign(path)


def test_a_table_cut_at_any_byte_of_its_last_line_never_reads_as_whole(tmp_path: Path) -> None:
    path = table(tmp_path / "source.tsv", list(noise(3)), IDS)
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for kept in range(start + 1, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(DataError), open_foreign(path) as foreign:
            common_axes(foreign, {name: name for name in IDS})


def test_features_that_are_no_base64_are_told(tmp_path: Path) -> None:
    def spoil(lines: list[str]) -> list[str]:
        cells = lines[1].split("\t")
        return [lines[0], "\t".join((*cells[:5], "!" + cells[5][1:])), lines[2]]

    with (
        open_foreign(rewrite(table(tmp_path / "source.tsv", list(noise(3)), IDS), spoil)) as foreign,
        pytest.raises(DataError, match=r"line 2: its features are no base64"),
    ):
        foreign.read("12")


def cut(path: Path, kept: int) -> Path:
    path.write_bytes(path.read_bytes()[:kept])
    return path


@pytest.mark.parametrize(
    "write", [lambda path: array(path, noise(3), IDS), lambda path: keys(path, list(noise(3)), IDS)]
)
@pytest.mark.parametrize("kept", [20, 100, 1500])
def test_a_cut_hdf5_is_told(tmp_path: Path, write: Callable[[Path], Path], kept: int) -> None:
    with pytest.raises(DataError, match=r"source cannot be read as HDF5: .*cut short"):
        open_foreign(cut(write(tmp_path / "source"), kept))


def test_an_array_without_ids_is_refused_and_told_what_is_missing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "source", "w") as file:
        file["features"] = noise(3)
        file["spatial_features"] = noise(3)
    with pytest.raises(DataError, match=r'holds features \(3, 6, 5\) and no ids.*Add a dataset "ids"'):
        open_foreign(tmp_path / "source")


@pytest.mark.parametrize(
    ("features", "ids", "message"),
    [
        (noise(3), IDS[:2], r"2 ids for 3 rows of /features"),
        (noise(3), ["7", "12", "7"], r"a name stands twice among its ids"),
        (noise(3)[0], IDS, r'expected a dataset "features".* found features \(6, 5\), ids \(3,\)'),
    ],
)
def test_an_array_and_its_ids_must_fit(tmp_path: Path, features: Any, ids: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_foreign(array(tmp_path / "source", features, ids))


def test_ids_that_are_not_utf8_hinder_no_other_image(tmp_path: Path) -> None:
    with open_foreign(array(tmp_path / "source", noise(2), np.array([b"caf\xe9.jpg", b"a.jpg"]))) as foreign:
        assert list(foreign.names()) == ["caf\ufffd.jpg", "a.jpg"]
        assert np.array_equal(foreign.read("a.jpg"), noise(2)[1])


@pytest.mark.parametrize("grid", [b"2x3", [2.0, 3.0], [6]])
def test_a_grid_of_another_kind_is_told(tmp_path: Path, grid: Any) -> None:
    with h5py.File(array(tmp_path / "source", noise(3), IDS), "a") as file:
        file.attrs["grid"] = np.bytes_(grid) if isinstance(grid, bytes) else grid
    with pytest.raises(DataError, match=r"source: expected a grid of rows and columns, found \["):
        open_foreign(tmp_path / "source")


def test_two_arrays_beside_the_ids_need_a_known_name(tmp_path: Path) -> None:
    with h5py.File(array(tmp_path / "source", noise(3), IDS, "spatial"), "a") as file:
        file["other"] = noise(3)
    with pytest.raises(DataError, match=r'expected a dataset "features"'):
        open_foreign(tmp_path / "source")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("kept", [0, 5, 90, 170])
def test_a_cut_numpy_file_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    path = folder(tmp_path / "source", list(noise(3)), IDS, suffix)
    cut(path / f"12{suffix}", kept)
    with open_foreign(path) as foreign, pytest.raises(DataError, match=rf"12\{suffix} cannot be read as a NumPy array"):
        foreign.form("12")
        foreign.read("12")


def test_a_flipped_byte_of_an_npz_is_noticed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "7.npz", feat=noise(3))
    content = bytearray((tmp_path / "7.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "7.npz").write_bytes(content)
    with open_foreign(tmp_path) as foreign, pytest.raises(DataError, match=r"7\.npz cannot be read"):
        foreign.read("7")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickled_arrays_are_never_loaded(tmp_path: Path, suffix: str) -> None:
    path = folder(tmp_path / "source", [np.array([{"a": 1}], object)], ["7"], suffix)
    with open_foreign(path) as foreign:
        for attempt in (foreign.form, foreign.read):
            with pytest.raises(DataError, match=r"cannot be read as a NumPy array: .*pickled arrays are not read"):
                attempt("7")


def test_an_npz_needs_the_key_feat(tmp_path: Path) -> None:
    np.savez(tmp_path / "7.npz", x=noise(3)[0], boxes=noise(3)[1])
    with open_foreign(tmp_path) as foreign, pytest.raises(DataError, match=r'under the key "feat", found x, boxes'):
        foreign.form("7")


def test_a_folder_of_both_kinds_is_refused_where_they_meet(tmp_path: Path) -> None:
    folder(folder(tmp_path, [noise(1)[0]], ["7"]), [noise(1)[0]], ["7"], ".npz")
    with pytest.raises(DataError, match=r"holds 7\.npy and 7\.npz"):
        open_foreign(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"a\tb\n", b"image,feature\n", b"PK\x03\x04"])
def test_other_files_are_of_no_known_form(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "source").write_bytes(content)
    with pytest.raises(DataError, match=r"source is of no known form: expected one HDF5 file"):
        open_foreign(tmp_path / "source")


def test_a_folder_without_arrays_and_a_path_without_anything_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.npy and no \.npz"):
        open_foreign(tmp_path)
    with pytest.raises(MissingError, match="gone does not exist"):
        open_foreign(tmp_path / "gone")


def test_a_digest_follows_names_and_contents(tmp_path: Path) -> None:
    def digest(name: str, ids: list[str], features: NDArray[np.float32]) -> str:
        with open_foreign(folder(tmp_path / name, list(features), ids)) as foreign:
            return foreign.digest()

    first = digest("a", IDS, noise(3))
    assert digest("b", IDS, noise(3)) == first
    assert digest("c", ["7", "12", "306"], noise(3)) != first
    assert digest("d", IDS, noise(3) + 1) != first
