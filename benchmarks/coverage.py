"""How many architectures can be exported, listed, cut at three depths, and proven?

    python benchmarks/coverage.py [--only SUBSTRING] [--json] [--log FILE]

Weights are random: what is tried is the graph, not the accuracy. For every model: export (torch.export first, the
older exporter where that fails), list the cuts, cut near 25, 50 and 75 % of the work, and prove each cut as
`narrows cut` does: bit for bit without the quantiser, measured with it (three qualities, two frames of noise).

torchvision's wheel does not load beside a CPU build of torch without help: put a module `torchvision_cpu` that
declares its operators on PYTHONPATH, or run on a machine with both from one index.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage_models import TIMM, TORCHVISION, made_up
from harness import report
from narrows.partitioner import CutPoint, Model, Quantiser, cut_model, list_cuts, load
from narrows.partitioner.data import made_up_frames
from narrows.partitioner.torch_source import RANDOM, Module, export
from narrows.runtime.errors import NarrowsError

DEPTHS = (0.25, 0.5, 0.75)
_FRAMES = 2


@dataclass
class Row:
    """What became of one model."""

    model: str
    nodes: int = 0
    cuts: int = 0
    proven: int = 0
    batched: str = ""
    seconds: float = 0.0
    failure: str = ""
    clear: bool = True
    """The failure, where there is one, was an error of ours that says what is wrong."""


def subjects() -> Iterator[tuple[str, Callable[[], Model]]]:
    """Names of the models, and what loads them."""
    for name in TORCHVISION:
        yield f"torchvision:{name}", lambda name=name: load(f"torchvision:{name}", RANDOM)  # type: ignore[misc]
    for name in TIMM:
        yield f"timm:{name}", lambda name=name: load(f"timm:{name}", RANDOM)  # type: ignore[misc]
    for name, module, example in made_up():
        yield f"made up: {name}", lambda m=module, e=example, n=name: export(Module(m, e), n)  # type: ignore[misc]


def choose(cuts: list[CutPoint]) -> list[CutPoint]:
    """The cuts nearest to each of the depths, in share of the work: those of few bytes first."""
    total = max(cut.head_flops + cut.tail_flops for cut in cuts)
    smallest = min(len(cut.tensors) for cut in cuts)
    few = [cut for cut in cuts if len(cut.tensors) == smallest]
    chosen: dict[str, CutPoint] = {}
    for depth in DEPTHS:
        best = min(few, key=lambda cut: (round(abs(cut.head_flops / total - depth), 2), cut.symbol_bytes))
        chosen[best.name] = best
    return list(chosen.values())


def examine(name: str, loader: Callable[[], Model], folder: Path) -> Row:
    """Export, list, cut and prove one model."""
    row, start = Row(name), time.perf_counter()
    try:
        torch.manual_seed(0)
        model = loader()
        row.nodes = len(model.proto.graph.node)
        cuts = list_cuts(model)
        row.cuts = len(cuts)
        for cut in choose(cuts):
            data = made_up_frames(model.proto, True, _FRAMES)
            arrays = {v.name: _stack(data, i) for i, v in enumerate(model.proto.graph.input)}
            made = cut_model(
                model, cut.name, output=folder / "bundle", calibrate=arrays, quantiser=Quantiser(levels=(4, 16, 256))
            )
            row.batched = "yes" if made.manifest.batched else "no"
            row.proven += 1
    except NarrowsError as error:
        row.failure = f"{error.code}: {error}"
    except Exception as error:  # noqa: BLE001 - a sweep goes on, and shows what was no clear error
        row.failure, row.clear = f"{type(error).__name__}: {error}", False
    row.seconds = time.perf_counter() - start
    return row


def _stack(frames: list[Any], index: int) -> np.ndarray[Any, Any]:
    return np.stack([frame[index] for frame in frames])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--log", type=Path, help="append every row to this file, and skip models that it has already")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    done: dict[str, Row] = {}
    if options.log and options.log.exists():
        lines = options.log.read_text().splitlines()
        done = {row.model: row for row in (Row(**json.loads(line)) for line in lines)}
    rows = []
    for name, loader in subjects():
        if options.only not in name:
            continue
        if name not in done:
            with tempfile.TemporaryDirectory() as folder:
                done[name] = examine(name, loader, Path(folder))
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps(asdict(done[name])) + "\n")
        rows.append(done[name])
    proven = sum(not row.failure for row in rows)
    clear = sum(row.clear for row in rows if row.failure)
    failed = len(rows) - proven
    note = f"{proven} of {len(rows)} proven ({proven / len(rows):.1%}); {clear} of {failed} failures are clear errors"
    report("Coverage", [asdict(row) for row in rows], as_json=options.json, note=note)


if __name__ == "__main__":
    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401
    main()
