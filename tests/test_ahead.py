"""Things are started ahead of the one that is given out, and come in their order."""

from collections.abc import Iterator

import pytest

from pipeline.ahead import ahead


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_item_is_given_out_when_so_many_later_ones_have_been_started(count: int) -> None:
    started: list[int] = []

    def items() -> Iterator[int]:
        for item in range(5):
            started.append(item)
            yield item

    seen = []
    for item in ahead(items(), count):
        assert started == list(range(min(item + count + 1, 5)))
        seen.append(item)
    assert seen == list(range(5))


def test_nothing_is_given_out_of_nothing() -> None:
    assert list(ahead(iter(()), 2)) == []
