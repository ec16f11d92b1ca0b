"""What a decoder is given of stored features.

Owns the way from the cache's dtype to the decoder's, on its device, and which pooling it is to look through. Does not
know images or captions.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.features.grid import Grid, pooling
from pipeline.features.store import Quantisation


class View:
    """From features as they are stored to what a decoder is given: the one way, whoever stored them.

    Attributes:
        pooling: (R, N) float32 on the device, from the cache's cells to the decoder's regions, for
            `Captioner.look_through`; None where they are the same.
    """

    def __init__(
        self, native: Grid, wanted: Grid, quantisation: Quantisation | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Prepare the constants on the device.

        Args:
            native: the grid of the features.
            wanted: the decoder's grid.
            quantisation: what stored bytes mean; None for floats.
            device: where the decoder is.
            dtype: of what it sees.

        Raises:
            CacheError: one grid is none and the other is one.
        """
        matrix = pooling(native, wanted)
        self.device, self.dtype = device, dtype
        self.pooling = None if matrix is None else torch.from_numpy(matrix).to(device)
        self._meaning = quantisation and tuple(
            torch.from_numpy(constants).to(device) for constants in (quantisation.zeros, quantisation.scales)
        )

    def see(self, stored: NDArray[np.generic] | Tensor) -> Tensor:
        """Send stored features to the device as they are, and restore them there.

        Args:
            stored: (B, N, C) on the CPU, in the cache's dtype.

        Returns:
            (B, N, C).
        """
        regions = torch.as_tensor(stored).to(self.device, non_blocking=True)
        if self._meaning:
            zeros, scales = self._meaning
            regions = regions.float().sub_(zeros).mul_(scales)  # as `features.quantise.restore`, to the last bit
        return _converted(regions, self.dtype)


def _converted(regions: Tensor, dtype: torch.dtype) -> Tensor:
    """On a CPU, torch takes float16 to bfloat16 number by number: by way of float32, four times as fast, same bits."""
    if regions.device.type != "cpu" or (regions.dtype, dtype) != (torch.float16, torch.bfloat16):
        return regions.to(dtype)
    converted, between = torch.empty(regions.shape, dtype=dtype), torch.empty(regions.shape[1:])
    for target, source in zip(converted, regions, strict=True):  # an image at a time stays in the processor's cache
        target.copy_(between.copy_(source))
    return converted
