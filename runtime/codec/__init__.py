"""The lossless part of the link: symbols in, bytes out, and the very same symbols back.

A coder is known by its name and version ("bitplane-zstd/1"); the two ends agree on one in the handshake, and every
frame carries its number. `bind` prepares a coder for one tensor (parses tables, sizes buffers) once, so that `encode`
and `decode` are all that a frame costs.

    spec = SymbolSpec((64, 14, 14), np.dtype("uint8"), levels=16, channel_axis=0)
    bound = by_label("context/1").bind(spec, table=train_table(spec, calibration_symbols))
    payload = bound.encode(symbols)
    assert np.array_equal(bound.decode(payload), symbols)
"""

from .base import BoundCoder, Coder, Symbols, SymbolSpec, label_of
from .context import Context, kernel_status
from .registry import best_common, by_label, by_number, labels
from .training import TrainingOptions, train_table

TRAINED_CODER = label_of(Context)
"""Label of the coder that `train_table` makes tables for."""

__all__ = [
    "TRAINED_CODER",
    "BoundCoder",
    "Coder",
    "SymbolSpec",
    "Symbols",
    "TrainingOptions",
    "best_common",
    "by_label",
    "by_number",
    "kernel_status",
    "label_of",
    "labels",
    "train_table",
]
