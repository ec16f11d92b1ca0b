"""What a sweep has found, as a table: the scores of its members, seeds of one setting taken together.

Owns the grouping, the mean and the spread. Does not know where scores come from.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.commands.members import SEED, Member

_SCORES = {"bleu4": "BLEU-4", "cider": "CIDEr", "rouge_l": "ROUGE-L", "mean_length": "words a caption"}

Metrics = Mapping[str, Any]


def table(members: Sequence[Member], metrics: Mapping[str, Metrics]) -> str:
    """Markdown, a row for each setting: mean and standard deviation (n - 1) over its seeds; best BLEU-4 first.

    Args:
        members: of the sweep.
        metrics: of each experiment by its name, as `metrics.json` has them; members without any are left out.
    """
    groups: dict[str, list[Metrics]] = {}
    for member in members:
        if member.name in metrics:
            groups.setdefault(_named(member), []).append(metrics[member.name])
    rows = sorted(groups.items(), key=lambda row: -_mean(row[1], "bleu4"))
    head = ["change", "seeds", *_SCORES.values()]
    lines = [head, ["---"] * len(head)]
    lines += [[name, str(len(found)), *(_told(found, score) for score in _SCORES)] for name, found in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _named(member: Member) -> str:
    """Its changes but for the seed."""
    changes = {name: value for name, value in member.changes.items() if name != SEED}
    parts = [f"`{str(name).removeprefix('train.')}: {value}`" for name, value in changes.items()]
    return ", ".join(parts) or "none"


def _values(found: Sequence[Metrics], score: str) -> list[float]:
    return [float(one[score]) for one in found if one.get(score) is not None]


def _mean(found: Sequence[Metrics], score: str) -> float:
    values = _values(found, score)
    return statistics.fmean(values) if values else 0.0


def _told(found: Sequence[Metrics], score: str) -> str:
    values = _values(found, score)
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"
