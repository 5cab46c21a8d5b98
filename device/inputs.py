"""One frame's arrays, out of whatever a source read or a caller passed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime.answer import Array
from ..runtime.errors import NarrowsError, SourceError
from ..runtime.images import fit
from ..runtime.manifest import Manifest


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """One frame as a source gives it."""

    source: str
    arrays: tuple[Array, ...] = ()
    """One per input of the model, in the manifest's order, without a batch axis; empty where `error` is set."""
    error: NarrowsError | None = None
    """Why there is nothing to feed; the frames after it are unharmed."""
    picture: NDArray[np.uint8] | None = None
    """The picture before it was fitted, `uint8` `[height, width, 3]`, where the source was asked to keep it."""


Value = Array | tuple[Array, ...] | Mapping[str, Array] | Input
"""What a caller may pass for one frame: the array of the one input, a tuple or a dict of several, or an `Input`."""


def as_input(value: Value, source: str, manifest: Manifest) -> Input:
    """Arrange what a caller passed; what cannot be arranged becomes an input with its error."""
    if isinstance(value, Input):
        return value
    try:
        return Input(source, arrange(value, manifest))
    except NarrowsError as error:
        return Input(source, error=error)


def arrange(value: Array | tuple[Array, ...] | Mapping[str, Array], manifest: Manifest) -> tuple[Array, ...]:
    """Bring one frame's arrays into the manifest's order; where the model takes pictures, fit them.

    Args:
        value: an array, a tuple in the manifest's order, or a dict by input name. A picture is `uint8`
            `[height, width, 3]`, RGB, of any size.
        manifest: says what the model takes.

    Raises:
        SourceError: too few, too many or other inputs than the model's; not a picture where it takes one.
    """
    names = [spec.name for spec in manifest.inputs]
    if isinstance(value, Mapping):
        if set(value) != set(names):
            raise SourceError(f"the model takes {', '.join(names)}; {', '.join(value) or 'nothing'} came")
        arrays = tuple(value[name] for name in names)
    else:
        arrays = value if isinstance(value, tuple) else (value,)
    if len(arrays) != len(names):
        raise SourceError(f"the model takes {len(names)} inputs ({', '.join(names)}); {len(arrays)} came")
    if manifest.preprocess is None:
        return tuple(np.asarray(array) for array in arrays)
    return (fit(np.asarray(arrays[0]), manifest.preprocess), *arrays[1:])
