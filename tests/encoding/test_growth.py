"""Adding images encodes the new ones, removing some encodes none, and the result is that of a fresh encode."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.encoding.growth import CATALOGUE
from pipeline.errors import CacheError, ImageError
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace
from tests.encoding.quick import SETTINGS, QuickEngine, content, draw, encode, fail_at, quick_encoder, shards


def encoded(workspace: Workspace, **fields: Any) -> int:
    """Encode; how many images went through the engine."""
    encoder = quick_encoder(**fields)
    encode(workspace, encoder)
    assert isinstance(encoder.engine, QuickEngine)
    return sum(encoder.engine.batches)


def fresh(root: Path, numbers: Any, settings: Any = SETTINGS) -> dict[str, str]:
    """What a cache of these images holds that has never known others."""
    workspace = Workspace(root)
    draw(workspace, numbers)
    encode(workspace, quick_encoder(dtype=settings.dtype), settings)
    return content(workspace.features)


def cached_by_dvc(workspace: Workspace) -> None:
    """Do what DVC does between two runs: take the store's files over, and delete the out and the sweeping's victims."""
    import hashlib

    (workspace.root / ".dvc").mkdir(exist_ok=True)
    (workspace.root / ".dvc" / "config").touch()
    for path in workspace.features.rglob("*"):
        if path.is_file():
            name = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            target = workspace.root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copyfile(path, target)
                target.chmod(0o444)
    shutil.rmtree(workspace.features)
    for path in shards(workspace):
        path.unlink()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "grown")
    draw(workspace, range(11))
    assert encoded(workspace) == 11
    return workspace


@pytest.mark.parametrize("by_dvc", [True, False], ids=["by_dvc", "by_hand"])
@pytest.mark.parametrize(
    ("numbers", "new"),
    [
        pytest.param([*range(11), 20, 21], 2, id="two_more_at_the_end"),
        pytest.param([30, *range(5), 31, *range(5, 11)], 2, id="two_more_in_between"),
        pytest.param([0, 1, 4, 5, 6, 7, 8, 10], 0, id="some_removed"),
        pytest.param([*range(10, -1, -1)], 0, id="in_another_order"),
        pytest.param([3, 4, 5, 40], 1, id="most_removed_and_one_more"),
    ],
)
def test_only_new_images_are_encoded_and_the_bytes_are_those_of_a_fresh_encode(
    workspace: Workspace, tmp_path: Path, numbers: list[int], new: int, by_dvc: bool
) -> None:
    if by_dvc:
        cached_by_dvc(workspace)
    draw(workspace, numbers)
    assert encoded(workspace) == new
    assert content(workspace.features) == fresh(tmp_path / "fresh", numbers)


def test_what_is_taken_over_is_said(workspace: Workspace) -> None:
    cached_by_dvc(workspace)
    draw(workspace, [*range(9), 20])
    told: list[str] = []
    receipt = encode(workspace, quick_encoder(), tell=told.append)
    assert "9 of 10 images are taken over from an earlier cache of the same encoder." in told
    assert (receipt.images, receipt.found, receipt.taken) == (10, 0, 9)


def test_an_unchanged_shard_is_a_link_to_dvcs_own_file(workspace: Workspace) -> None:
    cached_by_dvc(workspace)
    draw(workspace, [*range(11), 20])
    encoded(workspace)
    first = workspace.features / "regions" / "c" / "0" / "0" / "0"
    objects = {path.stat().st_ino for path in (workspace.root / ".dvc" / "cache").rglob("*") if path.is_file()}
    assert first.stat().st_ino in objects


def test_images_that_come_back_after_having_been_removed_are_not_encoded(workspace: Workspace, tmp_path: Path) -> None:
    cached_by_dvc(workspace)
    for numbers in ([5, 6, 7], range(11)):
        draw(workspace, numbers)
        assert encoded(workspace) == 0
        cached_by_dvc(workspace)
    draw(workspace, range(11))
    encoded(workspace)
    assert content(workspace.features) == fresh(tmp_path / "fresh", range(11))


def test_a_changed_image_is_encoded_again(workspace: Workspace) -> None:
    before = FeatureReader(workspace.features).read(range(11))
    draw(workspace, [0, 1, 2, 50, 4, 5, 6, 7, 8, 9, 10])
    assert encoded(workspace) == 1
    after = FeatureReader(workspace.features).read(range(11))
    assert [row for row in range(11) if not np.array_equal(before[row], after[row])] == [3]


def test_an_object_of_dvc_that_is_not_what_it_was_is_not_taken(workspace: Workspace, tmp_path: Path) -> None:
    shard = (workspace.features / "regions" / "c" / "1" / "0" / "0").read_bytes()
    cached_by_dvc(workspace)
    (damaged,) = (
        path for path in (workspace.root / ".dvc").rglob("*") if path.is_file() and path.read_bytes() == shard
    )
    damaged.chmod(0o644)
    damaged.write_bytes(shard[:-1] + bytes([shard[-1] ^ 1]))
    draw(workspace, [*range(11), 20])
    assert encoded(workspace) == 4  # a shard of three, and the new one
    assert content(workspace.features) == fresh(tmp_path / "fresh", [*range(11), 20])


def test_an_object_of_dvc_that_was_taken_over_damaged_gives_its_whole_rows_only(
    workspace: Workspace, tmp_path: Path
) -> None:
    import hashlib

    held = (workspace.features / "regions" / "c" / "1" / "0" / "0").read_bytes()
    harmed = bytes([held[0] ^ 1]) + held[1:]
    for path in shards(workspace):
        if path.read_bytes() == held:
            path.write_bytes(harmed)  # the store's as well
    cached_by_dvc(workspace)
    (path,) = workspace.work("encode").rglob(CATALOGUE)
    before, after = (hashlib.md5(one, usedforsecurity=False).hexdigest() for one in (held, harmed))
    path.write_text(path.read_text().replace(before, after))
    assert encoded(workspace) == 1
    assert content(workspace.features) == fresh(tmp_path / "fresh", range(11))


@pytest.mark.parametrize(("place", "new"), [(3, 1), (-1, 3)], ids=["a_row", "the_index"])
def test_rows_that_are_damaged_in_the_work_folder_are_encoded_again(
    workspace: Workspace, tmp_path: Path, place: int, new: int
) -> None:
    numbers = [80, *range(11)]  # every row moves
    held = (workspace.features / "regions" / "c" / "1" / "0" / "0").read_bytes()
    (damaged,) = (path for path in shards(workspace) if path.read_bytes() == held)
    damaged.unlink()  # a link of the store's
    damaged.write_bytes(bytes(byte ^ (at == place % len(held)) for at, byte in enumerate(held)))
    draw(workspace, numbers)
    assert encoded(workspace) == 1 + new
    assert content(workspace.features) == fresh(tmp_path / "fresh", numbers)


def test_another_encoder_takes_nothing_over(workspace: Workspace) -> None:
    assert encoded(workspace, image_size=7) == 11


def test_another_codec_or_size_of_shards_takes_all_rows_over(workspace: Workspace, tmp_path: Path) -> None:
    for number, change in enumerate(({"codec": "none"}, {"codec": "blosc", "shard_images": 4}, {"shard_images": 7})):
        cached_by_dvc(workspace)
        settings = replace(SETTINGS, **change)  # type: ignore[arg-type]
        encoder = quick_encoder()
        encode(workspace, encoder, settings)
        assert not encoder.engine.batches  # type: ignore[attr-defined]
        assert content(workspace.features) == fresh(tmp_path / str(number), range(11), settings)


def test_a_grown_uint8_cache_keeps_its_first_scales_and_the_rows_it_had(tmp_path: Path) -> None:
    workspace, settings = Workspace(tmp_path), replace(SETTINGS, dtype="uint8")
    draw(workspace, range(7))
    encode(workspace, quick_encoder(dtype="uint8"), settings)
    first = FeatureReader(workspace.features)
    before = first.read(range(7))
    draw(workspace, [60, *range(7)])
    encode(workspace, quick_encoder(dtype="uint8"), settings)
    grown = FeatureReader(workspace.features)
    assert grown.quantisation == first.quantisation
    assert np.array_equal(grown.read(range(1, 8)), before)


def test_a_uint8_cache_of_other_images_altogether_has_the_scales_of_a_fresh_one(tmp_path: Path) -> None:
    workspace, settings = Workspace(tmp_path / "used"), replace(SETTINGS, dtype="uint8")
    for encoded_before, numbers in enumerate((range(4), range(20, 26), range(4))):
        draw(workspace, numbers)
        encode(workspace, quick_encoder(dtype="uint8"), settings)
        assert content(workspace.features) == fresh(tmp_path / f"{numbers[0]}-{encoded_before}", numbers, settings)


def test_a_run_stopped_before_the_data_set_changed_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Workspace(tmp_path / "other")
    draw(other, range(11))
    with monkeypatch.context() as patch:
        fail_at(other.dataset / "images" / "10.png", other, patch)  # the last shard fails, and its run never ends
        with pytest.raises(ImageError):
            encode(other, quick_encoder())
    finished = 3 * len(shards(other))
    assert finished
    draw(other, [70, *range(11)])
    assert encoded(other) == 12 - finished
    assert content(other.features) == fresh(tmp_path / "fresh", [70, *range(11)])


@pytest.mark.parametrize("damaged", ["{", "[]", '{"shards": [{"key": 1}], "quantisation": null}'])
def test_a_damaged_catalogue_says_what_its_loss_costs(workspace: Workspace, damaged: str) -> None:
    (path,) = workspace.work("encode").rglob(CATALOGUE)
    path.write_text(damaged)
    with pytest.raises(
        CacheError, match=rf"{CATALOGUE}, which notes .* is damaged .*Delete it\. What only an older cache holds"
    ):
        encoded(workspace)
    path.unlink()
    assert encoded(workspace) == 0


def test_the_catalogue_forgets_shards_that_hold_nothing_more(workspace: Workspace) -> None:
    import json

    for numbers in (range(12), range(13), range(14)):
        draw(workspace, numbers)
        encoded(workspace)
    (path,) = workspace.work("encode").rglob(CATALOGUE)
    assert len(json.loads(path.read_text())["shards"]) == 5  # ceil(14 / 3)
    assert len(shards(workspace)) == 5
    assert FeatureReader(workspace.features).read(range(14)).any()
