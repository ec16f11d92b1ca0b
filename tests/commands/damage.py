"""Damage to the quick cache of 11 images, and the look at it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.commands import verify
from pipeline.commands.verify import Report
from pipeline.files import Workspace
from tests.encoding.quick import SETTINGS

SHARDS = [f"regions/c/{number}/0/0" for number in range(4)]  # of 3, 3, 3 and 2 images
ALL: dict[str, Any] = {"data": SimpleNamespace(images="no folder of the user's"), "encode": SETTINGS}


def look(workspace: Workspace, **options: bool) -> Report:
    return verify.verify(workspace, ALL, **options)


def flip(path: Path, place: int = 20) -> None:
    """Change a byte in the file itself, as a disk does: every hard link to it has the damage."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place)
        (old,) = file.read(1)
        file.seek(place)
        file.write(bytes([old ^ 1]))
    path.chmod(mode)
