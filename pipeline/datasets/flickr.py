"""The token files of Flickr8k and Flickr30k: `NAME#NUMBER<TAB>CAPTION`, a caption a line.

Owns that format. Does not know the split lists that lie beside it (see splits).
"""

import re

from pipeline.datasets.records import CaptionsFile, Gathering, Record
from pipeline.errors import DataError

_LINE = re.compile(r"(?P<name>.+?)#\d+\t(?P<caption>.*)")
_EXPECTED = "expected NAME#NUMBER, a tab and a caption"
# The one wrong name in Flickr8k.token.txt, as its authors distribute it.
_MISSPELT = {"2258277193_586949ec62.jpg.1": "2258277193_586949ec62.jpg"}


def mismatch(captions: CaptionsFile) -> str | None:
    """Why this is not a token file, None if it is: its first line decides."""
    if captions.path.is_dir():
        return "it is a folder"
    for _, line in captions.lines():
        return None if _LINE.fullmatch(line) else f"{_EXPECTED}, its first line is {line[:60]!r}"
    return "it is empty"


def read(captions: CaptionsFile) -> tuple[Record, ...]:
    """One record an image, without splits.

    Raises:
        DataError: a line is of another form; the message has its number.
    """
    gathering = Gathering()
    for place, line in captions.lines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise DataError(f"{place}: {_EXPECTED}, found {line[:60]!r}.")
        name = match["name"].strip()
        gathering.add(_MISSPELT.get(name, name), [match["caption"]], None, place)
    return gathering.records()
