"""Files that are whole or absent, folders of work in progress, and locks.

Owns the places of the pipeline's files (`Workspace`), atomic writing, hashing and mutual exclusion.
Does not know what any file means.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pipeline.errors import BusyError, DataError, MissingError, SpaceError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a write says for which there is no room
# What NumPy raises, reading an .npy or .npz that is cut short or damaged.
NUMPY_ERRORS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class Workspace:
    """Where everything lies, relative to the folder that holds `dvc.yaml`.

    `dvc.yaml` names the same places as deps and outs; a test holds the two equal.
    """

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def dataset(self) -> Path:
        return self.root / "data" / "dataset"

    @property
    def tokens(self) -> Path:
        return self.root / "data" / "tokens"

    @property
    def features(self) -> Path:
        return self.root / "data" / "features.zarr"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def captioner(self) -> Path:
        return self.models / "captioner"

    @property
    def train_results(self) -> Path:
        return self.root / "results" / "train"

    @property
    def evaluate_results(self) -> Path:
        return self.root / "results" / "evaluate"

    @property
    def report(self) -> Path:
        return self.root / "results" / "report.html"

    def work(self, stage: str) -> Path:
        """Work in progress of one stage: unknown to git and DVC, so that it survives a killed run."""
        return self.root / ".freezeframe" / stage

    def log(self, stage: str, record: dict[str, Any]) -> None:
        """Append what no output may hold (times, throughput, machine) to `.freezeframe/logs/STAGE.jsonl`."""
        path = self.work("logs") / f"{stage}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), **record}) + "\n")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes the name `path`, on failure it is removed.

    The content is on the disk (fsync) before the name appears, so a reader meets a whole file or none.

    Raises:
        SpaceError: the disk is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two processes or machines may write the same file, and the number of one may be the other's.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        tell_full_disk(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: filled under a temporary name, then renamed; an older one makes way.

    Raises:
        BusyError: another process writes this folder.
        SpaceError: the disk is full; the older folder, if any, is still there.
    """
    try:
        with _beside(path) as (temporary, older):
            temporary.mkdir()
            yield temporary
            for file in (*temporary.rglob("*"), temporary):
                _sync(file)
            if path.exists() or path.is_symlink():
                path.replace(older)  # a kill while it is deleted must not leave half of it under its name
            temporary.replace(path)
            _sync(path.parent)
    except OSError as error:
        tell_full_disk(error, path)
        raise


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[tuple[Path, Path]]:
    """Two temporary names for one writer of `path`, cleared of what a killed one left, and again at the end."""
    new, older, held = (path.with_name(f".{path.name}{kind}.partial") for kind in ("", ".older", ".lock"))
    with lock(held, f"writing {path.name}"):
        try:
            for left in (new, older):
                _remove(left)
            yield new, older
        finally:
            for left in (new, older, held):
                _remove(left)


def _remove(path: Path) -> None:
    """Remove a folder, or the link or file that stood in its place; what a link leads to stays."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def tell_full_disk(error: OSError, path: Path) -> None:
    """Turn "no space left" into a `SpaceError` that names the disk; leave any other error alone."""
    if error.errno in FULL and not isinstance(error, SpaceError):
        raise SpaceError(
            f"The disk that holds {path.parent} is full: {path.name} could not be written ({error.strerror}). What was "
            "finished before is kept; make room and run the same command again, it goes on from there."
        ) from error


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the file system has no links or it is another disk."""
    try:
        os.link(source, target)
    except OSError:  # a full disk fails again and is told
        shutil.copyfile(source, target)


def put(source: Path, target: Path) -> None:
    """Link by rename: whatever else is linked to the old file of that name keeps the old bytes."""
    with replacing(target) as temporary:
        link(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: two spaces, non-ASCII as it is, a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, made_by: str | None = None) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        made_by: the stage that writes it, named as the remedy when the file is absent.

    Raises:
        MissingError: it is not there.
        DataError: it is not UTF-8 or not JSON; the message has line and column.
    """
    try:
        return json.loads(read_text(path, made_by))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. "
            "Mend the file there, or fetch it again if it was cut short."
        ) from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be read; it is no file of captions or settings.") from error


def read_text(path: Path, made_by: str | None = None) -> str:
    """Read UTF-8 text, with or without a byte order mark.

    Raises:
        MissingError: it is not there.
        DataError: it is not UTF-8; the message has the byte.
    """
    require(path, made_by)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}. Save it as UTF-8."
        ) from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder where a file was expected. Name the file itself.") from error


def require(path: Path, made_by: str | None = None) -> Path:
    """Return `path` if something is there.

    Raises:
        MissingError: nothing is.
    """
    if not path.exists():
        remedy = f'Run "dvc repro {made_by}".' if made_by else "Check the path."
        raise MissingError(f"{path} does not exist. {remedy}")
    return path


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5(path: Path) -> str:
    """The MD5 of a file's content: DVC's name for it, no safeguard."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def sha256_of_json(value: Any) -> str:
    """The SHA-256 of a value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def under_dvc() -> bool:
    """Whether DVC runs this stage. It has taken the stages before over, unless it was asked not to."""
    return "DVC_ROOT" in os.environ


def dvc_object(root: Path, name: str) -> Path | None:
    """The file of DVC's own cache whose content has this MD5, if this is a DVC project and the file is there."""
    if not (root / ".dvc").is_dir():
        return None
    from dvc.config import Config

    folder = Path(Config(str(root / ".dvc"))["cache"].get("dir") or root / ".dvc" / "cache")
    path = folder / "files" / "md5" / name[:2] / name[2:]
    return path if path.is_file() else None


@contextlib.contextmanager
def lock(path: Path, work: str) -> Iterator[None]:
    """Hold `path` alone; the kernel lets go when the process ends, however it ends.

    Args:
        path: the lock file.
        work: what is being done, as it completes "Another process is ...".

    Raises:
        BusyError: another process holds it; the message says which and since when.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not _take(file, path):
            file.seek(0)
            _refuse(path, work, file.read().strip())
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield


def _take(file: TextIO, path: Path) -> bool:
    """Lock the open file of that name; one that its holder has removed meanwhile shuts nobody out."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _refuse(path: Path, work: str, holder: str) -> NoReturn:
    raise BusyError(
        f"Another process is {work} here: {holder or 'unknown'} (it holds {path}). "
        "Wait for it to end, or stop it; then run this again: what it finished is kept."
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
