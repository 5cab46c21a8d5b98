"""A bounded queue with one lane for each client: nobody's flood delays or displaces another's frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class FairQueue(Generic[Item]):
    """First come, first served within a lane, and one item from each lane in turn.

    When the queue is full, the longest lane gives way: its newest item leaves for an item of a shorter lane
    (McKenney, "Stochastic fairness queueing", INFOCOM 1990, section 3). A client that floods thus displaces itself.

    Not safe to use from several threads at once; the batcher holds its lock around every call.
    """

    def __init__(self) -> None:
        self._length = 0
        # Lanes in the order of their turns. Ordered dicts, since items leave from the middle when they are cancelled.
        self._lanes: OrderedDict[Hashable, OrderedDict[Item, None]] = OrderedDict()

    def __len__(self) -> int:
        return self._length

    @property
    def lanes(self) -> int:
        """Clients that have something queued."""
        return len(self._lanes)

    def ahead(self, client: Hashable) -> int:
        """Items that go before the next one of a client."""
        own = len(self._lanes.get(client, ()))
        return own + sum(min(len(lane), own + 1) for key, lane in self._lanes.items() if key != client)

    def push(self, client: Hashable, item: Item, capacity: int) -> Item | None:
        """Add an item at the end of its client's lane.

        Args:
            client: whose lane.
            item: hashable, not queued yet.
            capacity: items that may be queued now, at least 1.

        Returns:
            The item that found no room: None where there was room, `item` itself, or the newest of the longest lane.
        """
        displaced = None
        if self._length >= capacity:
            longest = max(self._lanes, key=lambda lane: len(self._lanes[lane]))
            if len(self._lanes[longest]) <= len(self._lanes.get(client, ())) + 1:
                return item
            displaced = next(reversed(self._lanes[longest]))
            self.remove(longest, displaced)
        self._lanes.setdefault(client, OrderedDict())[item] = None
        self._length += 1
        return displaced

    def remove(self, client: Hashable, item: Item) -> bool:
        """Take one item out, wherever it stands; whether it was there."""
        lane = self._lanes.get(client)
        if lane is None or item not in lane:
            return False
        del lane[item]
        self._length -= 1
        if not lane:
            del self._lanes[client]
        return True

    def take(self, count: int) -> list[Item]:
        """The next `count` items, or as many as there are, one from each lane in turn."""
        taken: list[Item] = []
        while self._lanes and len(taken) < count:
            client, lane = next(iter(self._lanes.items()))
            item, _ = lane.popitem(last=False)
            taken.append(item)
            self._length -= 1
            if lane:
                self._lanes.move_to_end(client)
            else:
                del self._lanes[client]
        return taken
