import shutil

import pytest

from pipeline.scoring.scores import score_captions, signature, vocabulary_used
from tests.scoring.golden import cases

REFERENCES = {"b.jpg": [["a", "dog"], ["one", "dog"]], "a.jpg": [["a", "cat"]]}


def test_scores_are_pycocoevalcaps_times_a_hundred() -> None:
    case = cases()[4]
    scores = score_captions(case.hypotheses, case.references)
    assert [scores[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx([100 * score for score in case.bleu])
    assert scores["cider"] == pytest.approx(100 * sum(case.cider) / len(case.cider))
    assert scores["rouge_l"] == pytest.approx(100 * case.rouge_l)


@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
def test_scores_equal_those_of_pycocoevalcap_where_it_is_installed() -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap is not installed")
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap is not installed")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge", reason="pycocoevalcap is not installed")
    case = max(cases(), key=lambda case: len(case.hypotheses))
    known = {number: [" ".join(words) for words in image] for number, image in enumerate(case.references)}
    said = {number: [" ".join(words)] for number, words in enumerate(case.hypotheses)}
    scores = score_captions(case.hypotheses, case.references)
    theirs, _ = bleu.Bleu(4).compute_score(known, said, verbose=0)
    assert [scores[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx([100 * score for score in theirs], rel=1e-9)
    assert scores["cider"] == pytest.approx(100 * cider.Cider().compute_score(known, said)[0], rel=1e-9)
    assert scores["rouge_l"] == pytest.approx(100 * rouge.Rouge().compute_score(known, said)[0], rel=1e-9)


def test_length_and_variety_are_told() -> None:
    scores = score_captions([["a", "dog"], ["a", "dog"], ["b"], []], [[["a", "dog"]]] * 4)
    assert scores["mean_length"] == 1.25
    assert scores["distinct"] == 0.75


def test_cider_of_one_image_is_undefined() -> None:
    scores = score_captions([["a", "dog"]], [[["a", "dog"]]])
    assert scores["cider"] is None
    assert scores["bleu1"] == pytest.approx(100)


def test_vocabulary_used_is_the_share_of_words_said() -> None:
    assert vocabulary_used([["a", "dog"], ["a", "<unk>"]], {"a", "dog", "cat", "runs", "fast"}) == 0.4
    assert vocabulary_used([["<unk>"]], set()) == 0


def test_the_signature_tells_everything_that_changes_a_score() -> None:
    line = signature(REFERENCES, "test", "beam 5, length penalty 0.7", "<unk> is never said")
    assert "\n" not in line
    for part in ("PTBTokenizer", "split test", "2 images", "1 to 2 references", "beam 5, length penalty 0.7"):
        assert part in line
    assert "<unk> is never said, <end> is dropped" in line
    assert "document frequencies of these references" in line


def test_the_signature_names_an_ensemble_and_says_nothing_new_of_a_single_model() -> None:
    alone = signature(REFERENCES, "test", "beam 5", "<unk> is never said")
    assert signature(REFERENCES, "test", "beam 5", "<unk> is never said", 1) == alone
    assert "average" not in alone
    several = signature(REFERENCES, "test", "beam 5", "<unk> is never said", 5)
    assert several == alone.replace("; beam 5;", "; 5 models averaged; beam 5;") != alone


def test_the_signature_depends_on_the_ids_and_not_on_their_order() -> None:
    def line(references: dict[str, list[list[str]]]) -> str:
        return signature(references, "test", "greedy", "")

    assert line(REFERENCES) == line(dict(reversed(REFERENCES.items())))
    assert line(REFERENCES) != line({"b.jpg": REFERENCES["b.jpg"], "c.jpg": REFERENCES["a.jpg"]})


def test_the_signature_of_one_image_says_that_cider_is_undefined() -> None:
    assert "CIDEr-D, undefined for one image" in signature({"a": [["a"]]}, "test", "", "")
