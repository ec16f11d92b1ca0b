"""JSON lines: an object a line with `image`, and `captions` (a list) or `caption`; `split` and `id` if wished.

Owns that format.
"""

import json
from typing import Any

from pipeline.datasets.records import CaptionsFile, Gathering, Record, as_text, list_at, split_named, text_at
from pipeline.errors import DataError


def mismatch(captions: CaptionsFile) -> str | None:
    """Why this is not such a file, None if it is: its first line decides."""
    if captions.path.is_dir():
        return "it is a folder"
    for place, line in captions.lines():
        try:
            value = parsed(line, place)
        except DataError as error:
            return str(error).removeprefix(f"{captions.path}, ").removesuffix(".")
        if not isinstance(value, dict):
            return "its first line is not an object"
        fits = "image" in value and ("captions" in value or "caption" in value)
        return None if fits else f"its first object has {', '.join(value)[:80]}; expected image and captions"
    return "it is empty"


def read(captions: CaptionsFile) -> tuple[Record, ...]:
    """One record an image, whose captions may stand on several lines.

    Raises:
        DataError: a line does not fit; the message has its number (and the column, where it is not JSON).
    """
    gathering = Gathering()
    for place, line in captions.lines():
        value = parsed(line, place)
        file = text_at(value, "image", place)
        name = text_at({**value, "id": str(value["id"])}, "id", place) if "id" in value else file
        split = split_named(text_at(value, "split", place), place) if value.get("split") else None
        gathering.add(name, _captions(value, place), split, place, file)
    return gathering.records()


def parsed(line: str, place: str) -> Any:
    """What a line of JSON holds.

    Raises:
        DataError: it is not JSON; the message names the place.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not valid JSON: {error.msg} at column {error.colno}.") from error
    except RecursionError as error:
        raise DataError(f"{place}: nested too deeply to be read.") from error


def _captions(value: dict[str, Any], place: str) -> list[str]:
    if "captions" in value:
        return [as_text(caption, place) for caption in list_at(value, "captions", place)]
    return [text_at(value, "caption", place)]
