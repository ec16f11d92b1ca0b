import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli import main
from pipeline.commands.pack import PackSettings, pack_dataset
from pipeline.datasets.dataset import Example, Split, read_dataset, write_dataset
from pipeline.errors import ImageError, MissingError, SettingsError, SpaceError
from pipeline.files import Workspace, sha256
from pipeline.language.words import tokenize
from stages import ingest
from tests import tiny
from tests.room import room_for

SIZE = 9
CAPTIONS = {
    "train": [
        ["A cat.", "a dog runs"],
        ["The cat runs!", "one", "two", "a cat sits", "a dog", "dogs"],
        ["a cat <start> runs"],
    ],
    "validation": [["a zebra"]],
    "test": [["a cat", "A dog, a cat"]],
}


def workspace_of(root: Path) -> Workspace:
    """Six images of noise, each of another shape."""
    workspace, examples = Workspace(root), list[Example]()
    folder = workspace.dataset / "images"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(3)
    for split, images in CAPTIONS.items():
        for captions in images:
            path = folder / f"{len(examples)}.png"
            shape = (11 + len(examples), 8, 3)
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path)
            own: Split = split  # type: ignore[assignment]
            examples.append(Example(f"id {len(examples)}", path.name, own, tuple(captions), sha256(path)))
    write_dataset(workspace.dataset, examples, {"format": "csv", "drawn": True, "skipped": []})
    return workspace


def pack(workspace: Workspace, folder: Path, captions: int = 3, often: int | None = 0, **changes: Any) -> str:
    told: list[str] = []
    wanted = PackSettings(SIZE, captions, often, changes.pop("name", None))
    words = tiny.settings("tokenize", **{f"tokenize__{key}": value for key, value in changes.items()})
    pack_dataset(workspace, tiny.settings("data"), words, folder, wanted, told.append)
    return " ".join(told)


def test_the_files_are_the_tutorials(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    told = pack(workspace, tmp_path / "out", captions=3, often=1, max_length=6)
    base = "csv_3_cap_per_img_1_min_word_freq"
    kinds = [f"{part}_{kind}" for part in ("TRAIN", "VAL", "TEST") for kind in ("CAPTIONS", "CAPLENS", "IMAGES")]
    suffix = {"IMAGES": "hdf5"}
    expected = {f"{kind}_{base}.{suffix.get(kind.partition('_')[2], 'json')}" for kind in kinds}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected | {f"WORDMAP_{base}.json"}
    words = json.loads((tmp_path / f"out/WORDMAP_{base}.json").read_text())
    assert words == {"a": 1, "cat": 2, "runs": 3, "dog": 4, "<unk>": 5, "<start>": 6, "<end>": 7, "<pad>": 0}
    captions = json.loads((tmp_path / f"out/TRAIN_CAPTIONS_{base}.json").read_text())
    lengths = json.loads((tmp_path / f"out/TRAIN_CAPLENS_{base}.json").read_text())
    assert captions[6] == [6, 1, 2, 5, 3, 7, 0, 0]  # "a cat <start> runs": no caption can write a mark
    assert captions[6] == captions[7] == captions[8]
    assert sorted(map(tuple, captions[:3]))[0] == (6, 1, 2, 7, 0, 0, 0, 0)
    assert len(captions) == len(lengths) == 9
    for numbers, length in zip(captions, lengths, strict=True):
        assert len(numbers) == 6 + 2
        assert numbers.index(7) == length - 1
        assert numbers[length:] == [0] * (8 - length)
    with h5py.File(tmp_path / f"out/VAL_IMAGES_{base}.hdf5", "r") as file:
        assert file.attrs["captions_per_image"] == 3
        assert (file["images"].shape, file["images"].dtype) == ((1, 3, SIZE, SIZE), np.uint8)
    assert "Packed 5 images and 15 captions" in told and "carry no ids" in told


def test_images_are_squashed_as_pillow_does(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    pack(workspace, tmp_path / "out")
    with h5py.File(next((tmp_path / "out").glob("TRAIN_IMAGES_*")), "r") as file:
        found = file["images"][:]
    for row in range(3):
        original = Image.open(workspace.dataset / f"images/{row}.png")
        assert np.array_equal(
            found[row].transpose(1, 2, 0), np.asarray(original.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        )


def read_back(folder: Path, root: Path) -> Workspace:
    place = str(folder)
    settings = tiny.settings("data", data__format="auto", **{f"data__{k}": place for k in ("images", "captions")})
    settings = type(settings)(**{**vars(settings), "splits": place})
    ingest.run(Workspace(root), settings)
    return Workspace(root)


def test_what_is_packed_is_read_back_exactly(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path / "from")
    pack(workspace, tmp_path / "out", captions=6, max_length=9)
    found = read_dataset(read_back(tmp_path / "out", tmp_path / "to").dataset)
    packed = read_dataset(workspace.dataset)
    assert [example.split for example in found.examples] == [example.split for example in packed.examples]
    for own, other in zip(found.examples, packed.examples, strict=True):
        if other.split != "train":  # the words of other splits are not counted
            continue
        said = [" ".join(tokenize(text)) for text in other.captions]
        assert list(own.captions) == [text.replace("<start>", "<unk>") for text in said]
    assert found.examples[3].captions == ("a <unk>",)
    pack(Workspace(tmp_path / "to"), tmp_path / "again", captions=6, max_length=9, name="csv")
    for path in (tmp_path / "out").glob("*_IMAGES_*"):
        with h5py.File(path, "r") as first, h5py.File(tmp_path / "again" / path.name, "r") as second:
            assert np.array_equal(first["images"][:], second["images"][:])


def test_more_captions_than_asked_for_are_sampled_by_the_seed(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    said = []
    for seed in range(6):
        pack(workspace, tmp_path / f"{seed}", captions=2, seed=seed)
        captions = json.loads(next((tmp_path / f"{seed}").glob("TRAIN_CAPTIONS_*")).read_text())
        assert captions[2] != captions[3]
        said.append(captions)
    assert len({json.dumps(captions) for captions in said}) > 1
    pack(workspace, tmp_path / "same", captions=2, seed=0)
    assert json.loads(next((tmp_path / "same").glob("TRAIN_CAPTIONS_*")).read_text()) == said[0]


def test_rare_words_default_to_those_of_tokenize(tmp_path: Path) -> None:
    pack(workspace_of(tmp_path), tmp_path / "out", often=None, min_count=3)
    (path,) = (tmp_path / "out").glob("WORDMAP_csv_3_cap_per_img_2_min_word_freq.json")
    assert json.loads(path.read_text()).keys() == {"a", "cat", "runs", "<unk>", "<start>", "<end>", "<pad>"}


def test_an_image_that_is_gone_leaves_no_file(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    (workspace.dataset / "images/4.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"4\.png cannot be decoded"):
        pack(workspace, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_fills_is_told_and_leaves_no_file(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    with room_for(2_000), pytest.raises(SpaceError, match=r"is full: TRAIN_IMAGES_\S+ could not be written"):
        pack(workspace, tmp_path / "out", max_length=9)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_word_map_takes_its_name_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[str] = []
    replace = Path.replace

    def noted(self: Path, to: Path) -> Path:
        replaced.append(to.name)
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", noted)
    pack(workspace_of(tmp_path), tmp_path / "out")
    assert len(replaced) == 10
    assert replaced[-1].startswith("WORDMAP_")


def test_images_without_a_word_are_left_out_and_named(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    dataset = read_dataset(workspace.dataset)
    silent = Example("quiet", "0.png", "train", ("!",), dataset.examples[0].sha256)
    write_dataset(workspace.dataset, [*dataset.examples, silent], dataset.summary)
    assert "Left out 1 images whose captions have no word: quiet." in pack(workspace, tmp_path / "out")
    with h5py.File(next((tmp_path / "out").glob("TRAIN_IMAGES_*")), "r") as file:
        assert len(file["images"]) == 3


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden"])
def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="--name must be part of a file's name"):
        pack(workspace_of(tmp_path), tmp_path / "out", name=name)


def test_packing_before_ingest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match='Run "dvc repro ingest"'):
        pack(Workspace(tmp_path), tmp_path / "out")


def test_the_command_packs_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_of(tmp_path)
    tiny.write_params(workspace)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["pack", "out", "--image-size", "7", "--name", "flickr8k"])
    assert result.exit_code == 0, result.output
    assert "Packed 5 images" in result.output
    with h5py.File("out/TEST_IMAGES_flickr8k_5_cap_per_img_0_min_word_freq.hdf5", "r") as file:
        assert file["images"].shape == (1, 3, 7, 7)
    assert not [path for path in Path("out").iterdir() if path.name.startswith(".")]
