"""The coders that this installation has, and how two ends agree on one."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import CoderError
from .base import Coder, label_of
from .bitplane import BitplaneZstd
from .context import Context, has_kernel
from .raw import Raw

# Best first. Without its kernel the context coder reads and writes the same bytes, but too slowly to be asked for.
_CODERS: tuple[Coder, ...] = (Context(), BitplaneZstd(), Raw()) if has_kernel() else (BitplaneZstd(), Raw(), Context())
_BY_LABEL = {label_of(coder): coder for coder in _CODERS}
_BY_NUMBER = {coder.number: coder for coder in _CODERS}


def labels() -> list[str]:
    """The coders that this installation has, best first, as "name/version"."""
    return list(_BY_LABEL)


def by_label(label: str) -> Coder:
    """The coder called `label`.

    Raises:
        CoderError: there is none.
    """
    try:
        return _BY_LABEL[label]
    except KeyError:
        raise CoderError(f"unknown coder {label!r}; this installation has {', '.join(_BY_LABEL)}") from None


def by_number(number: int) -> Coder:
    """The coder that frames call `number`.

    Raises:
        CoderError: there is none.
    """
    try:
        return _BY_NUMBER[number]
    except KeyError:
        known = ", ".join(f"{n} = {label_of(c)}" for n, c in _BY_NUMBER.items())
        raise CoderError(f"unknown coder number {number}; this installation has {known}") from None


def best_common(offered: Sequence[str]) -> str:
    """The first of the peer's coders, in the peer's order of preference, that is known here.

    Raises:
        CoderError: there is none.
    """
    for label in offered:
        if label in _BY_LABEL:
            return label
    raise CoderError(
        f"no coder in common: the peer has {', '.join(offered) or 'none'}, this end has {', '.join(_BY_LABEL)}; "
        "bring both ends to the same release"
    )
