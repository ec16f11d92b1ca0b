"""The members of a sweep, from its file.

Owns the file's form and what members may differ in. Does not train.
"""

import copy
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.captioners.build import check_decoder
from pipeline.errors import SettingsError
from pipeline.files import sha256_of_json
from pipeline.settings import collect, read_params, refuse
from pipeline.training.inputs import SHARED
from pipeline.training.settings import SelfCriticalSettings, TrainSettings

_LONGEST = 120  # letters of a name: it becomes a file of git's

_FORMS = ("grid", "members", "seeds")
SEED = "train.seed"


@dataclass(frozen=True)
class Member:
    """One training of a sweep.

    Attributes:
        name: of its experiment.
        changes: `train.key` to single value.
        replaced: sections that hold nothing but what `changes` puts there.
        settings: the section `train` with these changes.
    """

    name: str
    changes: dict[str, Any]
    replaced: tuple[str, ...]
    settings: TrainSettings


def read_members(path: Path, params: Path) -> list[Member]:
    """Every member of a sweep.

    Args:
        path: the sweep's file: `members`, a list of changed settings each, and `grid`, lists of values whose every
            combination is a member; with `seeds` each of them is trained once a seed.
        params: `params.yaml`, which is changed.

    Raises:
        SettingsError: lists everything that does not fit, of all members.
        MissingError: a file is not there.
    """
    document, section = read_params(path, "grid, members or seeds"), read_params(params)["train"]
    problems = [f"{key}: unknown; known: {', '.join(_FORMS)}" for key in document if key not in _FORMS]
    found: list[Member] = []
    for number, changes in enumerate(_seeded(document, problems), 1):
        place = f"member {number}"
        own: list[str] = []
        settings = _changed(section, changes, own)
        problems += [f"{place}: {problem}" for problem in own]
        if settings is not None and not own:
            same = next((other for other in found if _read(other.settings) == _read(settings)), None)
            if same is not None:
                problems.append(f"{place}: the same settings as {same.name}; each is trained once")
            single = dict(_single(changes))
            replaced = tuple(str(name) for name, value in changes.items() if isinstance(value, Mapping))
            found.append(Member(_name(path, single, replaced), single, replaced, settings))
    refuse(problems, path)
    if not found:
        raise SettingsError(
            f"{path} has no members; expected a list under members, lists of values under grid, seeds, or several."
        )
    return found


def _seeded(document: Mapping[str, Any], problems: list[str]) -> Iterator[dict[str, Any]]:
    seeds = document.get("seeds")
    if seeds is not None and not (isinstance(seeds, list) and seeds):
        problems.append(f"seeds: expected a list such as [1, 2], found {seeds!r}")
        return
    for changes in _changes(document, problems):
        if seeds and SEED in changes:
            problems.append(f"seeds: {SEED} is also changed by a member or the grid; name seeds in one place")
            return
        yield from ({**changes, SEED: seed} for seed in seeds) if seeds else [changes]


def _changes(document: Mapping[str, Any], problems: list[str]) -> Iterator[dict[str, Any]]:
    members, grid = document.get("members") or [], document.get("grid") or {}
    if not members and not grid and document.get("seeds"):
        members = [{}]
    if isinstance(members, list):
        for number, member in enumerate(members, 1):
            if isinstance(member, Mapping):
                yield dict(member)
            else:
                problems.append(f"members: expected settings such as {{train.seed: 1}}, found {member!r} ({number})")
    else:
        problems.append(f"members: expected a list, found {members!r}")
    if not isinstance(grid, Mapping) or not all(isinstance(values, list) and values for values in grid.values()):
        problems.append(f"grid: expected lists of values such as {{train.seed: [1, 2]}}, found {grid!r}")
    elif grid:
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def _changed(section: Mapping[str, Any], changes: Mapping[str, Any], problems: list[str]) -> TrainSettings | None:
    changed = copy.deepcopy(dict(section))
    for name, value in changes.items():
        whole = next((one for one in changes if str(name).startswith(f"{one}.")), None)
        trouble = f"{whole} is changed as well; put all into one" if whole else _set(changed, str(name), value)
        if trouble:
            problems.append(f"{name}: {trouble}")
    settings: TrainSettings | None = collect(TrainSettings, changed, "train", problems)
    if settings is not None and isinstance(settings.decoder, str) and isinstance(settings.decoder_options, dict):
        check_decoder(settings.decoder, settings.decoder_options, problems)
    return settings


def _read(settings: TrainSettings) -> TrainSettings:
    """What a training reads of them: without a second phase, nothing of the second phase's."""
    off = SelfCriticalSettings(epochs=0, samples=0, temperature=0, dropout=False, learning_rate=0)
    return settings if settings.self_critical.epochs else dataclasses.replace(settings, self_critical=off)


def _set(section: dict[str, Any], name: str, value: Any) -> str | None:
    """Change one setting; returns why that cannot be."""
    first, *keys = name.split(".")
    if first != "train" or not keys:
        return "members may differ in settings of train only, such as train.seed"
    if keys[0] in SHARED:
        return "members share their batches, and so this setting; set it in params.yaml, for all of them"
    target: Any = section
    for key in keys[:-1]:
        target = target.get(key) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        return f"there is no {name.rpartition('.')[0]} with keys of its own"
    target[keys[-1]] = value
    return None


def _single(changes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Changes of sections as changes of what is inside."""
    for name, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from _single({f"{name}.{key}": inside for key, inside in value.items()})
        else:
            yield str(name), value


def _short(name: str, replaced: Sequence[str]) -> str:
    """A setting's name without its section: of one that is replaced, what is inside speaks for itself."""
    section = next((one for one in replaced if name.startswith(f"{one}.")), "train")
    return name.removeprefix(f"{section}.")


def _name(path: Path, changes: Mapping[str, Any], replaced: Sequence[str] = ()) -> str:
    """A name that says what is changed, which git takes for a ref: unlike a number it stays when the file grows."""
    parts = [f"{_short(str(name), replaced)}-{value}" for name, value in changes.items()]
    whole = re.sub(r"[^\w.-]+|\.(?=\.)", "_", "-".join((path.stem, *parts)) if parts else f"{path.stem}-unchanged")
    name = re.sub(r"^[.-]+|\.$|(?<=\.)lock$", "_", whole)
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{sha256_of_json(whole)[:8]}"
