"""Starting the next things while one is waited for.

Owns the order and how many are under way. Does not know what is started, nor how it is waited for.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def ahead(started: Iterable[Item], count: int) -> Iterator[Item]:
    """The same items in their order, each given out when `count` later ones have been started.

    Args:
        started: taking an item from it starts it.
        count: of the later ones; fewer at the end.
    """
    waiting: deque[Item] = deque()
    for item in started:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
