"""A queue in which the photos of many requests wait: one of each request in turn.

    request a   1 2 3 4
    request b   1             taken: a1 b1 c1 a2 c2 a3 a4
    request c   1 2

A request of 64 products therefore holds up one of a single photo by one photo. Not for threads: the room
(room.py) holds its lock.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items by the request that they belong to.

    >>> queue = FairQueue[str]()
    >>> for request, photo in [("a", "a1"), ("a", "a2"), ("b", "b1")]:
    ...     queue.put(request, photo)
    >>> [queue.take(), queue.take(), queue.take()], len(queue)
    (['a1', 'b1', 'a2'], 0)
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, deque[T]] = OrderedDict()  # the next request is the first
        self._count = 0

    def __len__(self) -> int:
        """Returns how many items wait."""
        return self._count

    def put(self, request: Hashable, item: T) -> None:
        """Adds an item behind the others of its request; a new request is the last in turn."""
        self._waiting.setdefault(request, deque()).append(item)
        self._count += 1

    def take(self) -> T:
        """Removes and returns the next item.

        Raises:
            IndexError: none waits.
        """
        if not self._waiting:
            raise IndexError("nothing waits")
        request, items = next(iter(self._waiting.items()))
        item = items.popleft()
        if items:
            self._waiting.move_to_end(request)
        else:
            del self._waiting[request]
        self._count -= 1
        return item

    def forget(self, request: Hashable) -> int:
        """Removes the items of a request; returns how many there were."""
        removed = len(self._waiting.pop(request, ()))
        self._count -= removed
        return removed
