"""Damage to the quick cache of 11 images, and the look at it."""

from pathlib import Path
from types import SimpleNamespace

from pipeline.commands import verify
from pipeline.commands.verify import Report
from pipeline.files import Workspace
from pipeline.vision.encoder import EncodeSettings
from tests.encoding.quick import SETTINGS

SHARDS = [f"regions/c/{number}/0/0" for number in range(4)]  # of 3, 3, 3 and 2 images
DATA = SimpleNamespace(images="no folder of the user's")


def look(workspace: Workspace, settings: EncodeSettings = SETTINGS, **options: bool) -> Report:
    return verify.verify(workspace, {"data": DATA, "encode": settings}, **options)


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
