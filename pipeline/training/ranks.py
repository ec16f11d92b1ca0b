"""Several processes that train one decoder, each on its share of every batch (`torchrun`).

Owns joining them, the sums over all, and that an error is told by one of them. Does not know what is summed, nor how
a batch is shared. A single process is rank 0 of 1: nothing is exchanged then, and nothing costs anything.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import ClusterError, DeviceError, FreezeframeError

_PATIENCE = timedelta(hours=6)  # for the first to validate; a process that ends is noticed at once


@dataclass(frozen=True)
class Ranks:
    """One process among `count`.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local: its number on this machine, which is its GPU's.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that validates, records and writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: a GPU each, or the CPU for all.

        Raises:
            DeviceError: there are fewer GPUs than processes, or one was named for all.
        """
        if self.count == 1 or device.type != "cuda":
            return device
        gpus = torch.cuda.device_count()
        if device.index is not None or self.local >= gpus:
            raise DeviceError(
                f"{self.count} processes need a GPU each, but train.device is {device} and this machine has {gpus}. "
                "Set train.device to auto and --nproc-per-node to the number of GPUs."
            )
        return torch.device("cuda", self.local)

    def add(self, parts: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes: one exchange of one flat buffer, the same bytes on all."""
        if self.count == 1:
            return
        flat = torch.cat([part.detach().flatten() for part in parts])
        self._exchange(lambda: distributed.all_reduce(flat))
        for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))

    def average(self, parts: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if parts and self.count > 1:
            self.add(parts)
            for part in parts:
                part.div_(self.count)

    def from_first(self, values: Callable[[], Sequence[float]], count: int) -> list[float]:
        """What the first computes, for all.

        Args:
            values: called on the first only.
            count: how many it gives.
        """
        if self.count == 1:
            return list(values())
        sent = torch.tensor(values() if self.first else [0.0] * count, dtype=torch.float64)
        self._exchange(lambda: distributed.broadcast(sent, 0))
        return sent.tolist()

    def meet(self) -> None:
        """Wait until all are here."""
        self.from_first(lambda: [0.0], 1)

    def _exchange(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise ClusterError(
                f"Process {self.rank} of {self.count} has lost another one of this training ({error}). If nothing else "
                "is told, it was killed, perhaps for want of memory. Run the same command again to go on."
            ) from error


ALONE = Ranks()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started, as its environment says; alone without it.

    An error ends all of them and is told once, by whoever met it first.

    Raises:
        SystemExit: with status 1 and in silence, where another process has told.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    store, rank, count = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        yield Ranks(rank, count, int(os.environ.get("LOCAL_RANK", rank)))
    except (FreezeframeError, KeyboardInterrupt) as error:
        if store.add("errors told", 1) > 1:
            raise SystemExit(1) from error
        raise
    distributed.destroy_process_group()
