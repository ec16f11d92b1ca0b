"""A sweep's table: seeds of one setting together, mean and spread."""

from typing import Any

import pytest

from pipeline.commands.members import Member
from pipeline.commands.table import table
from tests import tiny

CHANGES: list[dict[str, Any]] = [
    {"train.seed": 1},
    {"train.dropout": 0.5, "train.seed": 1},
    {"train.seed": 2},
    {"train.dropout": 0.5, "train.seed": 2},
    {"train.decoder": "gru"},
    {"train.epochs": 9},
]
SCORES = [20.0, 22.0, 21.0, 25.0, 30.0]


@pytest.fixture
def members() -> list[Member]:
    return [Member(f"m{place}", changes, (), tiny.settings("train")) for place, changes in enumerate(CHANGES)]


def test_a_row_is_a_setting_with_mean_and_standard_deviation_over_its_seeds(members: list[Member]) -> None:
    metrics = {
        f"m{place}": {"bleu4": score, "cider": 2 * score, "validation": {"bleu4": -score, "cider": 3 * score}}
        for place, score in enumerate(SCORES)
    }
    head, line, *rows = table(members, metrics, "test", "cider").splitlines()
    assert head == (
        "| change | seeds | greedy validation BLEU-4 | greedy validation CIDEr | test BLEU-4 | test CIDEr "
        "| test ROUGE-L | test words a caption |"
    )
    assert line.count("---") == 8
    assert rows == [  # by validation's CIDEr; the last member has no scores
        "| `decoder: gru` | 1 | -30.00 | 90.00 | 30.00 | 60.00 | - | - |",
        "| `dropout: 0.5` | 2 | -23.50 ± 2.12 | 70.50 ± 6.36 | 23.50 ± 2.12 | 47.00 ± 4.24 | - | - |",
        "| none | 2 | -20.50 ± 0.71 | 61.50 ± 2.12 | 20.50 ± 0.71 | 41.00 ± 1.41 | - | - |",
    ]


def test_the_best_is_on_top_by_the_score_that_chooses_epochs(members: list[Member]) -> None:
    metrics = {f"m{place}": {"validation": {"bleu4": -score, "cider": score}} for place, score in enumerate(SCORES)}
    tops = [table(members, metrics, "test", monitor).splitlines()[2] for monitor in ("bleu4", "cider")]
    assert [top.split(" | ")[0] for top in tops] == ["| none", "| `decoder: gru`"]


def test_scores_that_are_undefined_are_left_out(members: list[Member]) -> None:
    metrics: dict[str, dict[str, Any]] = {"m0": {"bleu4": 20.0, "cider": None}, "m2": {"bleu4": 22.0, "cider": 5.0}}
    row = table(members, metrics, "validation", "bleu4").splitlines()[2]
    assert row == "| none | 2 | - | - | 21.00 ± 1.41 | 5.00 | - | - |"
