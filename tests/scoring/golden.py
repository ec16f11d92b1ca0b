"""The scores of pycocoevalcap for made-up captions, as `tests/golden/make_golden.py` wrote them."""

import json
from dataclasses import dataclass
from pathlib import Path

Words = list[str]


@dataclass(frozen=True)
class Case:
    hypotheses: list[Words]
    references: list[list[Words]]
    bleu: list[float]
    cider: list[float]
    rouge_l: float


def cases() -> list[Case]:
    path = Path(__file__).parents[1] / "golden" / "scores.json"
    return [
        Case(
            [text.split() for text in case["hypotheses"]],
            [[text.split() for text in texts] for texts in case["references"]],
            case["bleu"],
            case["cider"],
            case["rouge_l"],
        )
        for case in json.loads(path.read_text(encoding="utf-8"))
    ]
