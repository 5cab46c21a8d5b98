"""What a training leaves to look at: curves for TensorBoard, `metrics.json`, and rate-accuracy plots as PNG."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import MissingDependencyError, UsageError

logger = logging.getLogger(__name__)

CURVES = "curves"
METRICS = "metrics.json"
_INSTALL = "pip install 'narrows[train]'"


class Curves:
    """A `Recorder` that writes event files for TensorBoard into `folder/curves`.

    tensorboard --logdir RUN/curves

    Without the tensorboard package nothing is written, and the log says so: a training is not lost for its curves.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.warning("no curves: they are written by tensorboard (%s)", _INSTALL)
            self._writer = None
            return
        # Every start of a run appends a file of its own to the folder, and TensorBoard shows them as one curve.
        self._writer = SummaryWriter(str(folder / CURVES), flush_secs=10)

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve; what is not finite is left out."""
        if self._writer is not None and math.isfinite(value):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still to be written."""
        if self._writer is not None:
            self._writer.close()


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> Path:
    """Write `metrics.json`, whole or not at all.

    Args:
        folder: of the run.
        metrics: what JSON can hold; numbers that are not finite become null.

    Returns:
        The file's path.
    """
    path = folder / METRICS
    aside = path.with_name(f".{METRICS}.{os.getpid()}")
    aside.write_text(json.dumps(_finite(metrics), indent=1, allow_nan=False) + "\n")
    aside.replace(path)
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class RatePoint:
    """What one setting costs and gives."""

    bytes: float
    """A frame."""
    accuracy: float
    """Share of right answers, 0 to 1."""
    spread: float = 0.0
    """Standard deviation of the accuracy over seeds."""


@dataclass(frozen=True)
class RateCurve:
    """One method's points."""

    name: str
    points: tuple[RatePoint, ...]
    connected: bool = True
    """Drawn as a line; as marks alone otherwise."""


def plot_rate_accuracy(
    path: Path,
    curves: Sequence[RateCurve],
    *,
    title: str,
    teacher: float | None = None,
    bytes_label: str = "payload, bytes a frame",
) -> None:
    """Draw accuracy over bytes as a PNG.

    Args:
        path: of the file.
        curves: what to draw, in the order of the legend.
        title: above it.
        teacher: the whole model's accuracy, as a dashed line.
        bytes_label: what the bytes are.

    Raises:
        UsageError: there is no point to draw.
        MissingDependencyError: matplotlib is not installed.
    """
    if not any(curve.points for curve in curves):
        raise UsageError("a plot needs a point at least")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
    except ImportError:
        raise MissingDependencyError(f"plots are drawn by matplotlib: {_INSTALL}") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, curve in enumerate(curves):
        points = sorted(curve.points, key=lambda p: p.bytes)
        axes.errorbar(
            [p.bytes for p in points],
            [100 * p.accuracy for p in points],
            yerr=[100 * p.spread for p in points] if any(p.spread for p in points) else None,
            label=curve.name,
            marker="osD^vP*X"[i % 8],
            markersize=4,
            linewidth=1.2 if curve.connected else 0,
            capsize=2,
        )
    if teacher is not None:
        axes.axhline(100 * teacher, color="grey", linestyle="--", linewidth=1, label="teacher")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel(bytes_label)
    axes.set_ylabel("accuracy, %")
    axes.set_title(title, loc="left")
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, format="png")
