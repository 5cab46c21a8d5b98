"""Golden vectors: one frame through all parts of a cut at every quality, as each end will check it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.bundle import BundleWriter
from ..runtime.manifest import Cut, Half
from .plan import Plan
from .prove import AnyRunner

Arrays = dict[str, NDArray[Any]]


def write_golden(plan: Plan, cut: Cut, parts: Mapping[str, AnyRunner], writer: BundleWriter) -> None:
    """Write the files that the cut names.

    `head`: `input/<i>` in the order of the head's inputs, `symbols/<q>/<i>` in the order of `Cut.crossing`.
    `tail`: those symbols, and `output/<q>/<i>` in the order of `Cut.tail_outputs`.
    `final`: `input/<q>/<i>` in the order of the graph's inputs, `output/<q>/<i>` in the order of `Cut.final_outputs`.
    No array has a batch axis where the model takes batches.
    """
    feed = plan.feeder.one(plan.frames[0])
    head, tail, final = Arrays(), Arrays(), Arrays()
    taken = [spec.name for spec in plan.inputs if spec.name in cut.head_inputs]
    head |= {f"input/{i}": _frame(plan, feed[name]) for i, name in enumerate(taken)}
    for q in range(len(cut.qualities)):
        alive = feed if cut.quality_input is None else {**feed, cut.quality_input: np.array([q], np.int32)}
        alive = dict(alive)
        for runner in parts.values():
            alive |= runner(alive)
        symbols = {f"symbols/{q}/{i}": alive[t.symbols.name] for i, t in enumerate(cut.crossing)}
        head |= {key: _frame(plan, array) for key, array in symbols.items()}
        tail |= {key: _frame(plan, array) for key, array in symbols.items()}
        tail |= {f"output/{q}/{i}": _frame(plan, alive[name]) for i, name in enumerate(cut.tail_outputs)}
        if cut.final is not None:
            names = [name for name in parts["final"].inputs if name != cut.quality_input]
            final |= {f"input/{q}/{i}": _frame(plan, alive[name]) for i, name in enumerate(names)}
            final |= {f"output/{q}/{i}": _frame(plan, alive[name]) for i, name in enumerate(cut.final_outputs)}
    _save(writer.add(cut.golden_head, Half.DEVICE), head)
    _save(writer.add(cut.golden_tail, Half.SERVER), tail)
    if cut.golden_final is not None:
        _save(writer.add(cut.golden_final, Half.DEVICE), final)


def _frame(plan: Plan, array: NDArray[Any]) -> NDArray[Any]:
    return array[0] if plan.graph.batched else array


def _save(path: Path, arrays: Arrays) -> None:
    np.savez_compressed(path, allow_pickle=False, **arrays)
