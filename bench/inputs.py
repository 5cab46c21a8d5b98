"""The inputs that take turns under a load."""

from __future__ import annotations

from itertools import islice

from ..device import Input, open_source
from ..runtime.bundle import Bundle
from ..runtime.errors import SourceError
from ..runtime.halves import load_arrays

MAX_INPUTS = 256
"""Inputs that are held in memory, and come again and again."""
MAX_INPUT_BYTES = 256 << 20


def read_inputs(bundle: Bundle, source: str | None) -> list[Input]:
    """The first inputs of a source, as many as memory should hold; the golden frame where there is no source.

    Raises:
        SourceError: nothing there, or an input that cannot be read.
    """
    manifest = bundle.manifest
    if source is None:
        cut = manifest.cuts[0]
        golden = load_arrays(bundle, cut.golden_head)
        known = {name: golden[f"input/{i}"] for i, name in enumerate(cut.head_inputs)}
        if missing := [spec.name for spec in manifest.inputs if spec.name not in known]:
            raise SourceError(f"the golden frame has no {', '.join(missing)}; give inputs of your own with --input")
        return [Input("golden frame", tuple(known[spec.name] for spec in manifest.inputs))]
    inputs: list[Input] = []
    held_bytes = 0
    for item in islice(open_source(source, manifest), MAX_INPUTS):
        if item.error is not None:
            raise item.error
        inputs.append(item)
        held_bytes += sum(array.nbytes for array in item.arrays)
        if held_bytes > MAX_INPUT_BYTES:
            break
    if not inputs:
        raise SourceError(f"{source}: no frame in it")
    return inputs
