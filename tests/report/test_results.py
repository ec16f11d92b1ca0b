import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError, MissingError
from pipeline.report.results import read_evaluation
from tests.report import sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sample.write(tmp_path / "run").evaluate_results


def save(folder: Path, **changed: Any) -> None:
    lengths = [len(caption.split()) for caption in sample.CAPTIONS]
    arrays = {"weights": sample.attention(), "offsets": np.cumsum([0, *lengths]), "grid": np.array(sample.GRID)}
    np.savez(folder / "attention.npz", **{**arrays, **changed})


def test_each_caption_gets_the_attention_of_its_own_words(folder: Path) -> None:
    evaluation = read_evaluation(folder)
    assert [caption.words for caption in evaluation.captions] == [caption.split() for caption in sample.CAPTIONS]
    assert evaluation.captions[2].attention.argmax(axis=1).tolist() == [6, 7, 8]
    assert evaluation.captions[3].attention.shape == (0, 15)
    assert evaluation.grid == (3, 5)


def test_boxes_have_attention_without_a_grid(folder: Path) -> None:
    save(folder, grid=np.array([0, 0]))
    evaluation = read_evaluation(folder)
    assert evaluation.grid is None
    assert evaluation.captions[3].attention.shape == (0, 15)


@pytest.mark.parametrize("name", ["metrics.json", "captions.json", "skipped.json", "attention.npz"])
def test_a_missing_file_names_the_stage(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(MissingError, match=rf"{name}.*dvc repro evaluate"):
        read_evaluation(folder)


def test_missing_scores_are_all_named(folder: Path) -> None:
    fewer = {name: value for name, value in sample.METRICS.items() if name not in ("bleu2", "signature")}
    (folder / "metrics.json").write_text(json.dumps(fewer), encoding="utf-8")
    with pytest.raises(DataError, match="lacks bleu2, signature"):
        read_evaluation(folder)


def test_attention_that_does_not_belong_to_the_captions_is_refused(folder: Path) -> None:
    save(folder, offsets=np.array([0, 3]))
    with pytest.raises(DataError, match=r"holds 1 captions where captions\.json lists 6"):
        read_evaluation(folder)
    save(folder, offsets=np.array([0, 2, 6, 9, 9, 14, 18]))
    with pytest.raises(DataError, match=r"holds 2 words of id-0\.png, not 3"):
        read_evaluation(folder)
    save(folder, grid=np.array([4, 4]))
    with pytest.raises(DataError, match=r"for a grid of 4 x 4"):
        read_evaluation(folder)
    save(folder, weights=sample.attention()[:-1])
    with pytest.raises(DataError, match=r"ends at word 18 where it holds 17"):
        read_evaluation(folder)


def test_attention_with_a_flipped_byte_is_refused_or_what_it_was(folder: Path) -> None:
    path = folder / "attention.npz"
    np.savez_compressed(path, **np.load(path))
    whole, refused = path.read_bytes(), 0
    expected = [caption.attention.tolist() for caption in read_evaluation(folder).captions]
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = [caption.attention.tolist() for caption in read_evaluation(folder).captions]
        except DataError:
            refused += 1
        else:
            assert found == expected
    assert refused > len(whole) // 14


@pytest.mark.parametrize("content", ["5", '[{"image": "a"}]', "[7]"])
def test_captions_of_another_form_are_refused(folder: Path, content: str) -> None:
    (folder / "captions.json").write_text(content)
    with pytest.raises(DataError, match=r"captions.json is no list of objects with caption, image"):
        read_evaluation(folder)


def test_damaged_attention_is_refused_and_pickle_never_loaded(folder: Path) -> None:
    path = folder / "attention.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        read_evaluation(folder)
    save(folder, weights=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_evaluation(folder)
