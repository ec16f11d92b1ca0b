"""What a sweep has found, as a table: the scores of its members, seeds of one setting taken together.

Owns the grouping, the mean and the spread. Does not know where scores come from.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.commands.members import SEED, Member

_CHOOSING = {"bleu4": "BLEU-4", "cider": "CIDEr"}
_SCORES = {**_CHOOSING, "rouge_l": "ROUGE-L", "mean_length": "words a caption"}

Metrics = Mapping[str, Any]


def table(members: Sequence[Member], metrics: Mapping[str, Metrics], split: str, monitor: str) -> str:
    """Markdown, a row for each setting: mean and standard deviation (n - 1) over its seeds.

    First come the scores of greedy validation captions, which are there to choose by; the best of them is on top.

    Args:
        members: of the sweep.
        metrics: of each experiment by its name, as the two `metrics.json` of train and evaluate have them together;
            members without any are left out.
        split: that was evaluated.
        monitor: the validation score to sort by.
    """
    groups: dict[str, list[Metrics]] = {}
    for member in members:
        if member.name in metrics:
            groups.setdefault(_named(member), []).append(metrics[member.name])
    rows = sorted(groups.items(), key=lambda row: -_mean(_validation(row[1]), monitor))
    own = [f"{split} {title}" for title in _SCORES.values()]
    head = ["change", "seeds", *(f"greedy validation {title}" for title in _CHOOSING.values()), *own]
    lines = [head, ["---"] * len(head)]
    for name, found in rows:
        chosen = [_told(_validation(found), score) for score in _CHOOSING]
        lines.append([name, str(len(found)), *chosen, *(_told(found, score) for score in _SCORES)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _named(member: Member) -> str:
    """Its changes but for the seed."""
    changes = {name: value for name, value in member.changes.items() if name != SEED}
    parts = [f"`{str(name).removeprefix('train.')}: {value}`" for name, value in changes.items()]
    return ", ".join(parts) or "none"


def _validation(found: Sequence[Metrics]) -> list[Metrics]:
    """The scores of greedy validation captions, by the weights that were kept."""
    return [one.get("validation", {}) for one in found]


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
