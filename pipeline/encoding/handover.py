"""Handing a finished shard from a worker to the client where they share no disk, over any address that fsspec knows.

Owns names at that address and the check that what arrives is what was sent. Does not know what a shard holds.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CacheError, ClusterError, DependencyError
from pipeline.files import replacing, sha256, tell_full_disk


@dataclass(frozen=True)
class Parcel:
    """A file on its way.

    Attributes:
        address: where it lies, as fsspec takes it.
        sha256: of its content.
    """

    address: str
    sha256: str


def send(path: Path, folder: str) -> Parcel:
    """Put a file into a folder of the address, under a name of its own: nobody looks for it before its receipt comes.

    Raises:
        ClusterError: it cannot be written there.
        DependencyError: the address needs a library that is not installed.
    """
    parcel = Parcel(f"{folder}/{path.stem}.{secrets.token_hex(8)}{path.suffix}", sha256(path))
    files, place = _open(parcel.address)
    try:
        files.makedirs(place.rpartition("/")[0], exist_ok=True)
        files.put_file(str(path), place)
    except OSError as error:
        raise ClusterError(f"{parcel.address} cannot be written: {error}. Check encode.shared.") from error
    return parcel


def fetch(parcel: Parcel, target: Path) -> None:
    """Take a file to its final place, whole or not at all, and delete it where it lay.

    Raises:
        ClusterError: it cannot be read.
        CacheError: it is not what was sent.
        SpaceError: the disk here is full.
        DependencyError: the address needs a library that is not installed.
    """
    files, place = _open(parcel.address)
    with replacing(target) as temporary:
        try:
            files.get_file(place, str(temporary))
        except FileNotFoundError as error:
            raise ClusterError(
                f"{parcel.address}, which a worker has written, is not there for this machine. encode.shared must be "
                "one place for all: an object store or a disk that they share."
            ) from error
        except OSError as error:
            tell_full_disk(error, target)
            raise ClusterError(f"{parcel.address} cannot be read: {error}. Check encode.shared.") from error
        found = sha256(temporary)
        if found != parcel.sha256:
            raise CacheError(
                f"{parcel.address} has arrived damaged: expected SHA-256 {parcel.sha256}, found {found}. "
                "Run the same command again; it goes on from there."
            )
    files.rm_file(place)


def _open(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        files, place = url_to_fs(address)
    except ImportError as error:
        raise DependencyError(f"encode.shared {address}: {error}") from error
    except ValueError as error:
        raise ClusterError(f"encode.shared {address} is no address that fsspec knows: {error}.") from error
    return files, place
