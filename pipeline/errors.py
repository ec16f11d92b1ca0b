"""What can go wrong, one root.

Owns the kinds of failure that a user can act on; each is also the builtin kind it is, so that a caller
may catch either. Does not know how they are shown: the command line prints the message as one paragraph
and exits with status 1.

A message says what was expected, what was found, where, and what to do about it.
"""

import sys


class FreezeframeError(Exception):
    """The root of every error that is told to the user without a traceback."""


class SettingsError(FreezeframeError, ValueError):
    """Settings that do not fit; the message lists every one of them."""


class DataError(FreezeframeError, ValueError):
    """Captions, splits or tokens that cannot be used as they are."""


class ImageError(FreezeframeError, ValueError):
    """An image that cannot be decoded."""


class MissingError(FreezeframeError, FileNotFoundError):
    """A file or folder that should be there and is not."""


class WeightsError(FreezeframeError, ValueError):
    """Backbone weights that are unknown, cannot be had or do not fit."""


class CacheError(FreezeframeError, ValueError):
    """A feature cache that is incomplete, damaged or not the one expected."""


class CheckpointError(FreezeframeError, ValueError):
    """A trained captioner that is damaged or belongs to other inputs."""


class DeviceError(FreezeframeError, RuntimeError):
    """A device, engine or precision that this machine does not have."""


class ClusterError(FreezeframeError, RuntimeError):
    """A cluster that cannot be reached, or workers that do not fit the work."""


class BusyError(FreezeframeError, BlockingIOError):
    """Another process is doing this work."""


class SpaceError(FreezeframeError, OSError):
    """Not enough room on the disk."""


class DivergedError(FreezeframeError, ArithmeticError):
    """A loss that is no longer a number."""


class ExperimentError(FreezeframeError, RuntimeError):
    """An experiment that git or DVC cannot record."""


class DependencyError(FreezeframeError, ImportError):
    """An optional library or program that is not installed."""


def installing(extra: str) -> str:
    """How to install one of the project's extras, for messages."""
    return f"in the project's folder, {sys.executable} -m pip install -c constraints.txt -e '.[{extra}]'"
