"""From an uncut model to a profile: time its nodes once, cut it where that promises most, measure those cuts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ..partitioner import Prepared, can_merge, cut_model, load, merge_bundles, parse_preprocess, prepare, survey
from ..planner.profile import Estimate, Profile
from ..planner.shortlist import shortlist
from ..runtime.bundle import Bundle
from ..runtime.errors import ModelError, NothingToCutError, UsageError
from ..runtime.manifest import Half
from .bundle import profile_bundles
from .options import ProfileOptions, Progress, quietly

_AT_ONCE = 2
"""Cuts that are made at the same time."""


@dataclass(frozen=True, slots=True)
class CuttingOptions:
    """How cuts are made that are to be measured."""

    preprocess: str | None = None
    """What `narrows cut --preprocess` takes."""
    weights: str | None = None
    """What `narrows cut --weights` takes."""
    cuts: int = 12
    """That are made and measured, at most."""
    frames: int = 8
    """Calibration frames of each; `narrows cut` takes more, and its steps and tables are the better for it."""
    bundle: Path | None = None
    """Keep the cuts there, as one bundle for all devices."""

    def __post_init__(self) -> None:
        if min(self.cuts, self.frames) < 1:
            raise UsageError("cuts and frames are 1 or more")


def profile_model(
    model: str,
    options: ProfileOptions | None = None,
    cutting: CuttingOptions | None = None,
    progress: Progress = quietly,
) -> Profile:
    """Measure a model that has not been cut yet.

    Args:
        model: what `partitioner.load` takes.
        options: how to measure; its `images` are what cuts are calibrated on, too.
        cutting: how to cut.
        progress: told of every step.

    Raises:
        ModelError: it cannot be read, run or cut.
        SourceError: no readable pictures.
        UsageError: options that contradict each other or the model, or no pictures for a model of floats.
    """
    options, cutting = options or ProfileOptions(), cutting or CuttingOptions()
    if options.on_device or options.server is not None:
        raise UsageError("--on-device and --server are for a bundle; keep one with --bundle, and profile that")
    progress("timing every node", 0, 1)
    loaded = load(model, cutting.weights)
    if options.images is None and not any(node.op_type == "QuantizeLinear" for node in loaded.proto.graph.node):
        raise UsageError("cuts are calibrated and measured on what the model usually sees: give --images")
    preprocess = parse_preprocess(cutting.preprocess, loaded)
    found = survey(loaded, calibrate=options.images, preprocess=preprocess, options=options.session)
    progress("timing every node", 1, 1)
    estimates = tuple(
        Estimate(point.name, round(ms, 4), point.raw_bytes, point.symbol_bytes, point.depth)
        for point, ms in zip(found.points, found.heads_ms, strict=True)
    )
    picture_values = preprocess.height * preprocess.width * 3 if preprocess is not None else None
    chosen = shortlist(estimates, found.whole_ms, cutting.cuts, picture_values)
    with tempfile.TemporaryDirectory(prefix="narrows-profile-") as name:
        ready = prepare(loaded, calibrate=options.images, preprocess=preprocess, frames=cutting.frames)
        bundles, notes = _cut(ready, [one.name for one in chosen], loaded.name, Path(name), progress)
        profile = profile_bundles(bundles, options, progress)
        if cutting.bundle is not None:
            merge_bundles(bundles, cutting.bundle, cutting.bundle.name)
    return replace(profile, model=loaded.name, estimates=estimates, notes=(*profile.notes, *notes))


def _cut(
    model: Prepared, names: Sequence[str], title: str, folder: Path, tell: Progress
) -> tuple[list[Bundle], list[str]]:
    """The cuts that can be made, as bundles; the first carries the whole model.

    Raises:
        NothingToCutError: none can.
    """

    def cut(number: int, *, whole: bool) -> Bundle | ModelError:
        try:
            return cut_model(
                model,
                names[number],
                output=folder / f"cut{number}",
                whole=tuple(Half) if whole else (),
                name=title,
            )
        except ModelError as error:
            return error

    bundles: list[Bundle] = []
    notes: list[str] = []
    # Most of the time goes into the coder's tables, which take one core.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, made in enumerate(pool.map(lambda number: cut(number, whole=number == 0), range(len(names)))):
            if isinstance(made, Bundle) and not bundles and made.manifest.local is None:
                made = cut(number, whole=True)  # noqa: PLW2901 - those before it could not be made
            if isinstance(made, ModelError):
                notes.append(f"cut {names[number]} was left out: {made}")
            elif bundles and not can_merge([bundles[0], made]):
                notes.append(f"cut {names[number]} was left out: its parts do not take batches as those of others do")
            else:
                bundles.append(made)
            tell("cutting", number + 1, len(names))
    if not bundles:
        raise NothingToCutError(f"{title}: none of the best cuts can be made; {notes[-1]}")
    return bundles, notes
