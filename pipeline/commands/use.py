"""`freezeframe use`: write `params.yaml` for a data set, from presets.

Owns the overlaying of presets and single settings, comments kept. Does not run anything.

A preset of a data set holds the sections `data` and `tokenize`, one of a system the rest, one of a decoder the
decoder and its options alone: it goes with every system.
"""

import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.commands.settings import SECTIONS, check_settings
from pipeline.errors import MissingError, SettingsError
from pipeline.files import Workspace, read_text, write_text
from pipeline.report.page import effective
from pipeline.settings import parse_yaml, read_params
from pipeline.vision.backbones import names_a_file
from pipeline.vision.encoder import IMPORTED

DEMONSTRATION = "shapes"  # the preset, and its data.format
DEFAULT_SYSTEM = "resnet101"


def presets(workspace: Workspace) -> dict[str, Path]:
    """Every preset by name."""
    return {path.stem: path for path in sorted((workspace.root / "params").glob("*.yaml"))}


def use(
    workspace: Workspace,
    names: Sequence[str],
    images: str | None,
    captions: str | None,
    splits: str | None,
    assignments: Sequence[str],
) -> str:
    """Overlay presets on `params.yaml`, point it to a data set, and apply single settings.

    Args:
        workspace: whose `params.yaml` is rewritten; its presets are those of `params/`.
        names: presets, later ones win. A data set that is used without a system gets `resnet101`, unless
            `params.yaml` is already set for another system than the demonstration's.
        images: the folder of images.
        captions: the captions file.
        splits: split lists; the captions file itself where none is given.
        assignments: `section.key=value`, the value as YAML.

    Returns:
        What was set, and what `dvc repro` will do next.

    Raises:
        SettingsError: a preset, a key or a value does not fit; `params.yaml` is then unchanged.
        MissingError: a path is not there.
    """
    yaml = YAML()
    yaml.width = 4096
    document = _read(yaml, workspace.params)
    before = {section: copy.deepcopy(dict(document[section])) for section in SECTIONS}
    chosen = _with_system(workspace, list(names), before)
    for name in chosen:
        _overlay(document, read_params(presets(workspace)[name]))
    _point(workspace, document, images, captions, splits)
    for assignment in assignments:
        _assign(document, assignment)
    _locate_weights(document["encode"], before["encode"])
    check_settings(document, "the presets and settings asked for")
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    write_text(workspace.params, buffer.getvalue())
    changed = [name for name in SECTIONS if effective(name, document[name]) != effective(name, before[name])]
    return _told(chosen, document, changed)


def _read(yaml: YAML, path: Path) -> Any:
    """`params.yaml` with its comments."""
    lost = [section for section in SECTIONS if not isinstance(read_params(path).get(section), Mapping)]
    if lost:
        raise SettingsError(
            f'{path} lacks the section {lost[0]}, where its keys were expected. "git checkout params.yaml" brings the '
            "committed one back."
        )
    return yaml.load(read_text(path))


def _with_system(workspace: Workspace, names: list[str], before: Mapping[str, Any]) -> list[str]:
    known = presets(workspace)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SettingsError(f'There is no preset "{unknown[0]}". Presets: {", ".join(known)}.')
    held = {section for name in names for section in read_params(known[name])}
    if "encode" in held or "data" not in held:
        return names
    if DEMONSTRATION in names:
        system = "demo"
    elif before["data"].get("format") == DEMONSTRATION:
        system = DEFAULT_SYSTEM
    else:
        return names
    first = next((place for place, name in enumerate(names) if "data" not in read_params(known[name])), len(names))
    return [*names[:first], system, *names[first:]]  # a decoder is set into the system


def _overlay(document: Any, preset: Mapping[str, Any]) -> None:
    """Replace values, not mappings: the comments hang on the keys. Only another decoder's options are all others."""
    options, others = (place.get("decoder_options") for place in (document, preset))
    if "decoder" in preset and isinstance(options, Mapping) and isinstance(others, Mapping):
        for old in options.keys() - others.keys():
            del options[old]  # type: ignore[attr-defined]
    for key, value in preset.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), Mapping):
            _overlay(document[key], value)
        else:
            document[key] = value


def _point(workspace: Workspace, document: Any, images: str | None, captions: str | None, splits: str | None) -> None:
    for key, path in (("images", images), ("captions", captions), ("splits", splits or captions)):
        if path is None:
            continue
        if not Path(path).exists():
            raise MissingError(f"{path} does not exist; --{key} needs a path that does.")
        if workspace.root.resolve().is_relative_to(Path(path).resolve()):
            raise SettingsError(
                f"{path} is the project's own folder, where dvc writes its outputs; --{key} needs a path beside it or "
                "a folder inside it."
            )
        # Absolute, so that a queued experiment, which runs in a folder of its own, finds it.
        document["data"][key] = str(Path(path).resolve())
    data = document["data"]
    drawn = [key for key in ("images", "captions") if str(data.get(key)).endswith("shapes.py")]
    if data.get("format", DEMONSTRATION) != DEMONSTRATION and drawn:
        raise SettingsError("This data set is yours to bring: add --images DIR and --captions FILE.")


def _locate_weights(encode: Any, before: Mapping[str, Any]) -> None:
    """Make a path of weights absolute, as the data's are; names and `random` stay.

    A path given now must be there. One that was set before need not be: where the cache is, nothing reads it.
    """
    weights = str(encode.get("weights"))
    if Path(weights).is_file() or (encode.get("backbone") == IMPORTED and Path(weights).exists()):
        encode["weights"] = str(Path(weights).resolve())
    elif names_a_file(weights) and weights != before.get("weights"):
        raise MissingError(
            f"encode.weights: {weights} does not exist; give the path of a state dict, a name the library knows, "
            "default or random."
        )


def _assign(document: Any, assignment: str) -> None:
    path, equals, text = assignment.partition("=")
    section, _, key = path.partition(".")
    *outer, last = key.split(".")
    if not equals or not key or section not in SECTIONS:
        raise SettingsError(f'"{assignment}" is no setting; expected section.key=value, such as train.epochs=20.')
    value = parse_yaml(text, f'"{assignment}": the value')
    target = document[section]
    for name in outer:
        target = target.get(name) if isinstance(target, Mapping) else None
    if not isinstance(target, Mapping):
        raise SettingsError(f'"{assignment}": there is no {section}.{".".join(outer)}.')
    target[last] = value  # type: ignore[index]


def _told(chosen: Sequence[str], document: Any, changed: Sequence[str]) -> str:
    lines = [f"params.yaml is set to {' + '.join(chosen)}." if chosen else "params.yaml is rewritten."]
    data, encode, train = document["data"], document["encode"], document["train"]
    if data["format"] != DEMONSTRATION:
        lines.append(f"Images: {data['images']}\nCaptions: {data['captions']}")
        own = data["splits"] == data["captions"]
        lines.append("Splits: the captions file's own, else 80/10/10" if own else f"Splits: {data['splits']}")
    lines.append(f"Encoder: {encode['backbone']} ({encode['weights']}) at {encode['image_size']} px, run once.")
    lines.append(f"Decoder: {train['decoder']}, {train['epochs']} epochs.")
    if changed:
        first = "ingest" if changed[0] == "data" else changed[0]
        lines.append(f'"dvc repro" will run {first} and what follows from it, unless it has done so before.')
    else:
        lines.append('Nothing changed that results depend on: "dvc repro" will run only what is left to run.')
    return "\n".join(lines)
