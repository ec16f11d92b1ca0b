"""How alike two images are, by their mean regions.

Owns the vector that an image is compared by, and what is learnt from a set of images for it. Does not know how features
are read, nor what likeness is for.

Shapes: N images that are known, C channels, D directions in which they differ.
"""

import numpy as np
from numpy.typing import NDArray

WHITENING = 0.25  # of the way from variances as they are (0) to equal ones (1)
_FLAT = 1e-6  # of the largest variance: directions below it are rounding


class Likeness:
    """A set of images, and how alike another one is to each.

    An image's vector is the signed square root of its mean region (power normalisation: Perronnin, Sanchez and Mensink
    2010), centred on the set, its principal directions of standard deviation s divided by s^WHITENING (PCA-whitening,
    which favours what is rare: Jegou and Chum 2012, here a part of it), and of length 1. Likeness is the cosine.
    """

    def __init__(self, means: NDArray[np.float32]) -> None:
        """Learn the set.

        Args:
            means: (N, C), the mean region of each image.
        """
        roots = _rooted(means)
        self._centre = roots.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = roots - self._centre
        variances, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(centred))
        kept = variances > max(_FLAT * variances[-1], 0.0)
        self._basis = (directions[:, kept] * variances[kept] ** (-WHITENING / 2)).astype(np.float32)
        self._known = _unit(centred @ self._basis)

    def nearest(self, mean: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The images of the set most like another.

        Args:
            mean: (C,), its mean region.
            count: how many, or all N where there are fewer.

        Returns:
            Their places in the set, the most alike first, and their cosines.
        """
        # One image at a time: products of other sizes are rounded otherwise.
        cosines = (self._known @ _unit((_rooted(mean) - self._centre) @ self._basis)).astype(np.float64)
        places = np.argsort(-cosines, kind="stable")[:count]
        return places, cosines[places]


def _rooted(means: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.sign(means) * np.sqrt(np.abs(means))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)  # type: ignore[no-any-return]
