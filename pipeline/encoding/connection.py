"""The client's line to a scheduler, and what is sent over it by value.

Owns connecting, telling that the scheduler was lost, and leaving workers as they were found. Does not know what
they do.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from distributed import Client, WorkerPlugin
from distributed.client import ClosedClientError
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.core import CommClosedError
from distributed.comm.registry import get_backend
from distributed.protocol.pickle import dumps
from distributed.security import Security

from pipeline.errors import ClusterError, FreezeframeError

ROOT = Path(__file__).parents[2]
PREFIX = "freezeframe-"  # of plugins' names; the client's id follows
CONNECT = 8.0  # seconds for a scheduler to answer
SETTING = "encode.scheduler, or DASK_SCHEDULER_ADDRESS"
LOST = (ClosedClientError, CancelledError, RuntimeError)  # what saying goodbye to a lost scheduler may raise
ALONE = "unset DASK_SCHEDULER_ADDRESS and set encode.scheduler: local, to work on this machine alone"


def plugin_name(client: Client) -> str:
    """Under which a client's plugin is registered: two clients of one cluster, or two clones, have their own."""
    return f"{PREFIX}{client.id}"


@contextlib.contextmanager
def connected(address: str) -> Iterator[Client]:
    """Connect; at the end the workers close what they opened for this client.

    Raises:
        ClusterError: no scheduler answers, or it was lost.
    """
    with _quiet(), _telling_losses(address):
        client = _connect(address)
        try:
            _forget_the_dead(client)
            with client.as_current():
                yield client
        finally:
            with contextlib.suppress(*LOST, OSError, ValueError):
                client.unregister_worker_plugin(plugin_name(client))
            client.close()


def _connect(address: str) -> Client:
    _check(address)
    try:
        return Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # TypeError: of a protocol whose library is half there
        raise ClusterError(
            f"No dask scheduler answers at {address} ({SETTING}): {error}. Start one with "
            f'"dask scheduler", mend the address, or {ALONE}.'
        ) from error


def _check(address: str) -> None:
    """Refuse what no client could be made for: half made, it would hang at its end and die with a traceback."""
    try:
        scheme, place = parse_address(address)
        get_backend(scheme)
        parse_host_port(place)
    except ValueError as error:
        raise ClusterError(
            f"{address} is no address of a dask scheduler ({SETTING}): {error}. Expected tcp://HOST:PORT; mend it, or "
            f"{ALONE}."
        ) from error
    if scheme == "tls":
        _check_certificate(address)


def _check_certificate(address: str) -> None:
    try:
        context, reason = Security().get_connection_args("client").get("ssl_context"), "none is configured here"
    except (OSError, ValueError) as error:  # ssl's errors are OSErrors
        context, reason = None, f"what is configured here cannot be read ({error})"
    if context is None:
        raise ClusterError(
            f"{address} ({SETTING}) needs a certificate, and {reason}. Set distributed.comm.tls in dask's "
            f"configuration, here, on the scheduler and on the workers; or {ALONE}."
        )


@contextlib.contextmanager
def _telling_losses(address: str) -> Iterator[None]:
    """Turn the many ways in which a lost scheduler shows into one error."""
    try:
        yield
    except FreezeframeError:
        raise
    except (CancelledError, ClosedClientError, CommClosedError, ConnectionError, TimeoutError) as error:
        raise ClusterError(
            f"The scheduler at {address} was lost. What was finished is kept; start it again, or {ALONE}; "
            "the same command then goes on from there."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep distributed's log from the terminal: what matters is told as our errors."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "distributed.core")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _forget_the_dead(client: Client) -> None:
    """Close the workshops of clients that were killed; the scheduler knows who is alive."""

    def orphans(dask_scheduler: Any) -> list[str]:  # sent by value: a scheduler need not have this project
        names = [name for name in dask_scheduler.worker_plugins if name.startswith(PREFIX)]
        return [name for name in names if name.removeprefix(PREFIX) not in dask_scheduler.clients]

    for name in client.run_on_scheduler(orphans):
        client.unregister_worker_plugin(name)


def guest(station: Any) -> WorkerPlugin:
    """A plugin that lets workers find this clone, where they see it, and that opens the station when it is first used.

    Sent by value, the station as bytes: a worker that cannot import this project and is given no work is left alone.
    """
    root, pickled = str(ROOT), dumps(station)

    class Guest(WorkerPlugin):
        def setup(self, worker: Any) -> None:  # dask names it
            import sys
            import threading

            self._worker, self._opening, self._station = worker, threading.Lock(), None
            if root not in sys.path:
                sys.path.insert(0, root)

        def teardown(self, worker: Any) -> None:
            if self._station is not None:
                self._station.close()

        @property
        def station(self) -> Any:
            from distributed.protocol.pickle import loads

            with self._opening:
                if self._station is None:
                    station = loads(pickled)
                    station.settle(self._worker)
                    self._station = station
                return self._station

    return Guest()


def station_task(name: str) -> Callable[[bytes], Any]:
    """The task; sent by value, and its request as bytes, for the scheduler unpickles tasks."""

    def encode_shard(pickled: bytes) -> Any:
        from distributed import get_worker

        return get_worker().plugins[name].station.do(pickled)  # type: ignore[attr-defined]

    return encode_shard
