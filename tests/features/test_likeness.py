"""Likeness against the formula with plain linear algebra, and what it must not depend on."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.features.likeness import Likeness


def means(count: int, channels: int, seed: int = 3) -> NDArray[np.float32]:
    """Some channels large and some small, as features are; some negative."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, channels)) ** 3 * np.linspace(0.1, 5, channels)).astype(np.float32)


def plainly(known: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosines by singular values of the centred roots, in float64."""

    def rooted(one: NDArray[np.float32]) -> NDArray[np.float64]:
        wide = one.astype(np.float64)
        return np.asarray(np.sign(wide) * np.sqrt(np.abs(wide)))

    centre = rooted(known).mean(axis=0)
    centred = rooted(known) - centre
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    deviations = singular / np.sqrt(len(known))
    kept = deviations > 1e-3 * deviations.max()
    own, theirs = (
        rows @ directions[kept].T / deviations[kept] ** 0.25 for rows in (centred, (rooted(other) - centre)[None])
    )
    return np.asarray((own @ theirs.T)[:, 0] / np.linalg.norm(own, axis=1) / np.linalg.norm(theirs))


@pytest.mark.parametrize(("count", "channels"), [(31, 7), (9, 23)])
def test_cosines_are_those_of_the_formula_nearest_first(count: int, channels: int) -> None:
    known, other = means(count, channels), means(1, channels, seed=8)[0]
    expected = plainly(known, other)
    places, cosines = Likeness(known).nearest(other, count)
    np.testing.assert_allclose(cosines, np.sort(expected)[::-1], atol=2e-5)
    np.testing.assert_allclose(expected[places], cosines, atol=2e-5)
    assert sorted(places.tolist()) == list(range(count))


def test_an_image_of_the_set_is_most_like_itself() -> None:
    known = means(17, 5)
    likeness = Likeness(known)
    for place, mean in enumerate(known):
        (nearest,), (cosine,) = likeness.nearest(mean, 1)
        assert nearest == place
        assert cosine == pytest.approx(1, abs=1e-5)


def test_fewer_images_than_asked_for_are_all_given() -> None:
    places, cosines = Likeness(means(3, 5)).nearest(means(1, 5, seed=1)[0], 20)
    assert len(places) == len(cosines) == 3


def test_channels_that_are_alike_everywhere_count_nothing() -> None:
    known, other = means(19, 4), means(1, 4, seed=2)[0]
    constant = np.full((19, 3), 7, np.float32)
    expected = Likeness(known).nearest(other, 19)
    found = Likeness(np.hstack([known, constant])).nearest(np.append(other, [7, 7, 900]).astype(np.float32), 19)
    assert found[0].tolist() == expected[0].tolist()
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


def test_a_set_of_one_image_tells_nothing_and_fails_nothing() -> None:
    places, cosines = Likeness(means(1, 5)).nearest(means(1, 5, seed=1)[0], 4)
    assert (places.tolist(), cosines.tolist()) == ([0], [0])
