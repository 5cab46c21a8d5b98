"""Several bundles of one model as one bundle with several cuts, from which each device takes the cut that suits it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..runtime.bundle import Bundle, BundleWriter
from ..runtime.errors import UsageError
from ..runtime.manifest import CrossingTensor, Cut, Half
from .tables import TABLES

_ALIKE = ("inputs", "outputs", "batched", "preprocess", "labels", "model")


def can_merge(bundles: Sequence[Bundle]) -> bool:
    """Whether bundles are of one model, cut in the same way but for the place."""
    first = bundles[0].manifest
    return all(getattr(bundle.manifest, what) == getattr(first, what) for bundle in bundles for what in _ALIKE)


def merge_bundles(bundles: Sequence[Bundle], output: str | Path, name: str | None = None) -> Bundle:
    """Write one bundle with the cuts of several.

    Args:
        bundles: whole, of one model; the first with a whole model gives it.
        output: where the bundle goes.
        name: what devices ask a server for; the first bundle's when None.

    Raises:
        UsageError: bundles of several models, or the same cut twice.
        BundleError: something else is at `output`.
    """
    if not bundles or not can_merge(bundles):
        raise UsageError("only bundles of one model with the same inputs, outputs and preprocessing become one bundle")
    names = [cut.name for bundle in bundles for cut in bundle.manifest.cuts]
    if len(set(names)) != len(names):
        raise UsageError(f"a cut is in two of the bundles: {', '.join(sorted(n for n in names if names.count(n) > 1))}")
    with BundleWriter(Path(output)) as writer:
        cuts, tables, local = [], b"", None
        for number, bundle in enumerate(bundles):
            manifest = bundle.manifest
            cuts += [_moved(cut, f"cut{number}", len(tables)) for cut in manifest.cuts]
            shared = {manifest.tables, manifest.local, f"{manifest.local}.data"}
            for file, entry in manifest.files.items():
                if file not in shared:
                    shutil.copyfile(bundle.file(file), writer.add(f"cut{number}/{file}", *entry.halves))
            if manifest.tables is not None:
                tables += bundle.file(manifest.tables).read_bytes()
            if manifest.local is not None and local is None:
                local = manifest.local
                for file in filter(manifest.files.__contains__, (local, f"{local}.data")):
                    shutil.copyfile(bundle.file(file), writer.add(file, *manifest.files[file].halves))
        if tables:
            writer.add(TABLES, Half.DEVICE, Half.SERVER).write_bytes(tables)
        first = bundles[0].manifest
        return writer.finish(
            replace(
                first,
                name=name or first.name,
                cuts=tuple(cuts),
                files={},
                tables=TABLES if tables else None,
                local=local,
            )
        )


def _moved(cut: Cut, folder: str, tables_at: int) -> Cut:
    """A cut whose files are in a folder, and whose tables begin later."""

    def place(name: str | None) -> str | None:
        return None if name is None else f"{folder}/{name}"

    return replace(
        cut,
        head=f"{folder}/{cut.head}",
        tail=f"{folder}/{cut.tail}",
        final=place(cut.final),
        golden_head=f"{folder}/{cut.golden_head}",
        golden_tail=f"{folder}/{cut.golden_tail}",
        golden_final=place(cut.golden_final),
        crossing=tuple(_shifted(tensor, tables_at) for tensor in cut.crossing),
        exit=None
        if cut.exit is None
        else replace(cut.exit, graph=f"{folder}/{cut.exit.graph}", golden=f"{folder}/{cut.exit.golden}"),
        further_tails={
            name: replace(tail, graph=f"{folder}/{tail.graph}", golden=f"{folder}/{tail.golden}")
            for name, tail in cut.further_tails.items()
        },
        back=tuple(_shifted(tensor, tables_at) for tensor in cut.back),
    )


def _shifted(tensor: CrossingTensor, by: int) -> CrossingTensor:
    moved = (None if ref is None else replace(ref, offset=ref.offset + by) for ref in tensor.tables)
    return replace(tensor, tables=tuple(moved))
