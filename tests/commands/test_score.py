import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.score import score_files
from pipeline.errors import DataError, MissingError
from pipeline.scoring.scores import score_captions

SAID = {"1": "A dog runs.", "2": "Two cats don't sleep", "3": "a red ball"}
KNOWN = {
    "1": ["A black dog is running.", "A dog runs!"],
    "2": ["Two cats sleep", "The cats don't sleep on the sofa", "cats"],
    "3": ["A ball", "one red ball"],
}
WORDS = (
    [["a", "dog", "runs"], ["two", "cats", "do", "n't", "sleep"], ["a", "red", "ball"]],
    [
        [["a", "black", "dog", "is", "running"], ["a", "dog", "runs"]],
        [["two", "cats", "sleep"], ["the", "cats", "do", "n't", "sleep", "on", "the", "sofa"], ["cats"]],
        [["a", "ball"], ["one", "red", "ball"]],
    ],
)


def as_json(value: Any) -> tuple[str, str]:
    return ".json", json.dumps(value)


def as_lines(values: list[Any]) -> tuple[str, str]:
    return ".jsonl", "".join(f"{json.dumps(value)}\n" for value in values)


def dataset_line(image: str, split: str = "test") -> dict[str, Any]:
    return {"id": image, "file": f"{image}.jpg", "split": split, "captions": KNOWN[image], "sha256": ""}


SAID_FORMS = {
    "mapping": as_json(SAID),
    "coco results": as_json([{"image_id": int(image), "caption": text} for image, text in SAID.items()]),
    "our captions": as_json([{"image": image, "caption": text, "references": []} for image, text in SAID.items()]),
    "lines": as_lines([{"id": image, "caption": text} for image, text in SAID.items()]),
    "table": (".csv", "image,caption\n" + "".join(f"./{image},{text}\n" for image, text in SAID.items())),
}
COCO = {
    "images": [{"id": int(image), "file_name": f"{image}.jpg"} for image in KNOWN],
    "annotations": [{"image_id": int(image), "caption": text} for image, texts in KNOWN.items() for text in texts],
}
KNOWN_FORMS = {
    "mapping": as_json(KNOWN),
    "coco annotations": as_json(COCO),
    "our captions": as_json([{"image": image, "caption": "", "references": texts} for image, texts in KNOWN.items()]),
    "data set": as_lines([dataset_line(image) for image in KNOWN]),
    "token file": (".txt", "".join(f"{i}#{n}\t{text}\n" for i, texts in KNOWN.items() for n, text in enumerate(texts))),
    "lines": as_lines([{"image": image, "captions": texts, "split": None} for image, texts in KNOWN.items()]),
    "lines with ids": as_lines([{"id": int(i), "image": f"{i}.jpg", "captions": texts} for i, texts in KNOWN.items()]),
    "lines without files": as_lines([{"id": i, "captions": texts, "split": None} for i, texts in KNOWN.items()]),
    "a caption a line": as_lines([{"image": i, "captions": [text]} for i, texts in KNOWN.items() for text in texts]),
}


def write(folder: Path, name: str, form: tuple[str, str]) -> Path:
    path = folder / f"{name}{form[0]}"
    path.write_text(form[1], encoding="utf-8")
    return path


def score(folder: Path, said: tuple[str, str], known: tuple[str, str]) -> dict[str, Any]:
    return score_files(write(folder, "said", said), write(folder, "known", known))


@pytest.mark.parametrize("said", SAID_FORMS.values(), ids=SAID_FORMS)
@pytest.mark.parametrize("known", KNOWN_FORMS.values(), ids=KNOWN_FORMS)
def test_every_form_gives_the_same_scores(tmp_path: Path, said: tuple[str, str], known: tuple[str, str]) -> None:
    scores = score(tmp_path, said, known)
    for name, value in score_captions(*WORDS).items():
        assert scores[name] == pytest.approx(value), name
    assert scores["images"] == 3
    assert "3 images" in scores["signature"]
    assert "2 to 3 references" in scores["signature"]


def test_coco_results_may_be_held_against_the_folder_of_annotations(tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    for part, own in (("train2014", ("1",)), ("val2014", ("2", "3"))):
        mine = {
            "images": [image for image in COCO["images"] if str(image["id"]) in own],
            "annotations": [said for said in COCO["annotations"] if str(said["image_id"]) in own],
        }
        (folder / f"captions_{part}.json").write_text(json.dumps(mine))
    scores = score_files(write(tmp_path, "said", SAID_FORMS["coco results"]), folder)
    assert scores["images"] == 3
    assert scores["bleu4"] == score(tmp_path, SAID_FORMS["coco results"], as_json(COCO))["bleu4"]
    by_file = as_json({f"{image}.jpg": text for image, text in SAID.items() if image != "1"})
    assert score_files(write(tmp_path, "by_file", by_file), folder)["images"] == 2


def test_coco_images_may_be_named_by_file(tmp_path: Path) -> None:
    said = as_json({f"{image}.jpg": text for image, text in SAID.items()})
    assert score(tmp_path, said, as_json(COCO))["images"] == 3


def test_the_split_is_that_of_the_captioned_images(tmp_path: Path) -> None:
    lines = [dataset_line("1"), dataset_line("2"), dataset_line("3", "train")]
    said = as_json({"1": "a dog", "2": "cats"})
    scores = score(tmp_path, said, as_lines(lines))
    assert scores["images"] == 2
    assert "split test;" in scores["signature"]


@pytest.mark.parametrize(("word", "split"), [("val", "validation"), ("restval", "train")])
@pytest.mark.parametrize("name", ["image", "id"])
def test_a_split_is_called_as_ingest_calls_it(tmp_path: Path, name: str, word: str, split: str) -> None:
    lines = [{name: image, "captions": texts, "split": word} for image, texts in KNOWN.items()]
    assert f"split {split};" in score(tmp_path, as_json(SAID), as_lines(lines))["signature"]


def test_lines_that_have_ids_may_be_named_by_file(tmp_path: Path) -> None:
    said = as_json({f"photos/{image}.jpg": text for image, text in SAID.items()})
    lines = [{"id": f"no {i}", "image": f"./photos/{i}.jpg", "captions": texts} for i, texts in KNOWN.items()]
    assert score(tmp_path, said, as_lines(lines))["images"] == 3


def test_a_blank_caption_is_no_reference_as_it_is_none_to_ingest(tmp_path: Path) -> None:
    lines = [{"image": "4", "captions": [" "], "split": "test"}]
    lines += [{"image": image, "captions": ["", *texts], "split": "test"} for image, texts in KNOWN.items()]
    scores = score(tmp_path, as_json(SAID), as_lines(lines))
    assert scores["images"] == 3
    assert "2 to 3 references" in scores["signature"]


def test_a_split_must_be_captioned_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 images of .* have no caption in .*: 2"):
        score(tmp_path, as_json({"1": "a dog", "3": "a ball"}), KNOWN_FORMS["data set"])


def test_an_image_without_captions_is_none_of_its_split(tmp_path: Path) -> None:
    images = [
        {"filename": name, "split": "test", "sentences": [{"raw": text} for text in KNOWN.get(name, [])]}
        for name in ("1", "2", "4")
    ]
    assert score(tmp_path, as_json({"1": "a dog", "2": "cats"}), as_json({"images": images}))["images"] == 2


@pytest.mark.parametrize("listed", [False, True])
def test_names_may_be_in_any_unicode_form(tmp_path: Path, listed: bool) -> None:
    names = [unicodedata.normalize("NFD", f"{letter}.jpg") for letter in "éü"]
    said = [{"image": name, "caption": "a dog"} for name in names] if listed else dict.fromkeys(names, "a dog")
    known = "".join(f"{name}#0\tA dog\n" for name in names)
    assert score(tmp_path, as_json(said), (".txt", known))["images"] == 2


def test_a_data_set_without_splits_may_be_captioned_in_part(tmp_path: Path) -> None:
    scores = score(tmp_path, as_json({"1": "a dog", "3": "a ball"}), KNOWN_FORMS["coco annotations"])
    assert scores["images"] == 2
    assert "of 3 images with references" in scores["signature"]


def test_a_mapping_must_be_captioned_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 images of .* have no caption in"):
        score(tmp_path, as_json({"1": "a dog", "3": "a ball"}), KNOWN_FORMS["mapping"])


def test_the_first_ten_images_without_references_are_named(tmp_path: Path) -> None:
    said = as_json(SAID | {f"x{number:02}": "a dog" for number in range(12)})
    with pytest.raises(DataError, match=r"12 images captioned in .* have no references in .*: x00, .*, x09, \.\.\."):
        score(tmp_path, said, KNOWN_FORMS["mapping"])


def test_cider_of_a_single_image_is_none(tmp_path: Path) -> None:
    scores = score(tmp_path, as_json({"1": "a dog"}), as_json({"1": ["a dog"]}))
    assert scores["cider"] is None


WRONG_SAID = {
    "twice in a list": (as_json([{"image_id": 1, "caption": "a"}] * 2), "names 1 images more than once: 1"),
    "twice in a mapping": ((".json", '{"1": "a", "1": "b"}'), "names 1 images more than once: 1"),
    "a list of captions": (as_json(KNOWN), "the caption of 1 is .* where text was expected"),
    "no caption": (as_json([{"image_id": 1}]), "the caption of 1 is 'None'"),
    "no id": (as_json([{"caption": "a"}]), "expected objects with image_id or image or id"),
    "empty": (as_json([]), "holds no captions"),
    "a number": (as_json(3), "neither a list nor a mapping"),
    "not JSON": ((".json", '{"1": "a",\n  oops}'), "line 2, column 3"),
    "nested without end": ((".json", "[" * 100_000), "nested too deeply"),
    "a bad line": ((".jsonl", '{"id": "1", "caption": "a"}\n{oops}\n'), "line 2: not valid JSON"),
    "a line that is no object": (
        as_lines([{"id": "1", "caption": "a"}, None]),
        "expected objects with .*, found 'None'",
    ),
    "twice in a table": ((".csv", "image,caption\n1,a\n1,b\n"), "names 1 images more than once: 1"),
    "other columns": (
        (".csv", "file,text\n1,a\n"),
        "as a table, expected the columns image and caption, its first line has file, text.*COCO result file",
    ),
    "notes": ((".txt", "hello\n"), "as JSON, it is not JSON; as a table, expected the columns image and caption"),
}


@pytest.mark.parametrize(("said", "message"), WRONG_SAID.values(), ids=WRONG_SAID)
def test_wrong_captions_are_refused(tmp_path: Path, said: tuple[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(tmp_path, said, KNOWN_FORMS["mapping"])


WRONG_KNOWN = {
    "no references": (as_json({**KNOWN, "2": []}), "the references of 2 are"),
    "one text": (as_json({**KNOWN, "2": "cats"}), "the references of 2 are 'cats'"),
    "twice": (as_lines([dataset_line("1"), dataset_line("1")]), "names 1 images more than once: 1"),
    "a line that is no object": (as_lines([{"image": "1", "captions": ["a"]}, None]), "line 2: expected an object"),
    "lines of nothing": (as_lines([None]), "jsonl: its first line is not an object"),
    "an entry that is no object": (as_json([{"image": "1", "references": ["a"]}, None]), "expected objects with"),
    "a line of ours that is no object": (as_lines([dataset_line("1"), None]), "expected objects with"),
    "of no form": ((".txt", "hello\n"), "of no known format"),
}


@pytest.mark.parametrize(("known", "message"), WRONG_KNOWN.values(), ids=WRONG_KNOWN)
def test_wrong_references_are_refused(tmp_path: Path, known: tuple[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(tmp_path, as_json(SAID), known)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "said", as_json(SAID))
    with pytest.raises(MissingError, match="does not exist"):
        score_files(tmp_path / "absent.json", path)
    with pytest.raises(MissingError, match="does not exist"):
        score_files(path, tmp_path / "absent.json")
