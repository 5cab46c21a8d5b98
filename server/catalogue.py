"""The models that are served now, and those that are kept for streams that began with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..runtime.errors import BundleMismatchError, ModelNotFoundError
from .batcher import Batcher
from .repository import Changes, Model, natural


@dataclass(eq=False)
class Served:
    """A model and its batchers."""

    model: Model
    tails: tuple[dict[str, Batcher], ...]
    """For each cut, one for each of its tails, the cut's own first."""
    whole: Batcher | None = None
    """For the uncut model, where the bundle brings it."""
    users: int = 0
    """Streams and calls that hold it."""
    retired: bool = False
    """Found by nobody any more; its batchers end with its last user."""

    @property
    def batchers(self) -> tuple[Batcher, ...]:
        """All of them."""
        tails = [batcher for cut in self.tails for batcher in cut.values()]
        return (*tails, *filter(None, [self.whole]))

    def close(self) -> None:
        """End the batchers' threads; blocks until they have finished what is queued."""
        for batcher in self.batchers:
            batcher.close()


class Catalogue:
    """For each name, one model that is current, and perhaps others by digest. Lives on the event loop.

    A model that is replaced or removed is retired: new streams do not find it, streams that began with it go on with it
    until they end, so that halves of two bundles never meet.
    """

    def __init__(self, start: Callable[[Model], Served]) -> None:
        self._start = start
        self._served: dict[str, Served] = {}
        self._retiring: set[Served] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    @property
    def names(self) -> Sequence[str]:
        """Names of models, sorted."""
        return sorted({served.model.name for served in self})

    def current(self) -> Sequence[Served]:
        """Each name's current model, sorted by name."""
        return [self.find(name) for name in self.names]

    def versions(self, name: str) -> Sequence[Served]:
        """All models of a name, the current one last: that of the highest version, `v9` before `v10`."""
        return sorted((served for served in self if served.model.name == name), key=lambda s: natural(s.model.path))

    def find(self, name: str, digest: str = "") -> Served:
        """The model of a name, at a digest or the current one.

        Raises:
            ModelNotFoundError: no model of that name; the names that there are stand in the text.
            BundleMismatchError: the name is here and the digest is not; both digests stand in the text.
        """
        versions = self.versions(name)
        if not versions:
            raise ModelNotFoundError(f"no model {name!r} here; there are {', '.join(self.names) or 'none'}")
        if not digest:
            return versions[-1]
        for served in versions:
            if served.model.digest == digest:
                return served
        raise BundleMismatchError(
            f"the device holds bundle {digest} of {name!r}, the server {versions[-1].model.digest}; "
            "fetch the head again (narrows pull), or serve that bundle"
        )

    def apply(self, changes: Changes) -> None:
        """Serve what is new and retire what is gone, in one step: at no moment is a name without its model."""
        for model in changes.added:
            self._served[model.digest] = self._start(model)
        for digest in changes.removed:
            self._retire(digest)

    def _retire(self, digest: str) -> None:
        served = self._served.pop(digest)
        served.retired = True
        self._retiring.add(served)
        self._unload_unused(served)

    @contextmanager
    def using(self, served: Served) -> Iterator[Served]:
        """Keep a model loaded for as long as the block runs."""
        served.users += 1
        try:
            yield served
        finally:
            served.users -= 1
            self._unload_unused(served)

    async def close(self) -> None:
        """Run what is queued and end all threads."""
        everything = [*self._served.values(), *self._retiring]
        await asyncio.gather(*self._closing, *(asyncio.to_thread(served.close) for served in everything))

    def _unload_unused(self, served: Served) -> None:
        if served.retired and not served.users and served in self._retiring:
            self._retiring.remove(served)
            task = asyncio.get_running_loop().create_task(asyncio.to_thread(served.close))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
