"""The report's pictures as PNG files, for papers: `narrows plan … --png DIR`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..planner.choose import Plan, best_of
from ..planner.predict import Prediction, predict
from ..runtime.errors import MissingDependencyError, UsageError
from .figures import Situation, group, positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE_IN = (7.0, 3.6)
_DPI = 200
_PARTS: dict[str, tuple[str, Callable[[Prediction], float]]] = {
    "head": ("#0072b2", lambda one: one.stages.head),
    "coding": ("#56b4e9", lambda one: one.stages.encode + one.stages.decode),
    "link": ("#e69f00", lambda one: one.stages.link),
    "queue": ("#8c8c8c", lambda one: one.stages.queue),
    "tail": ("#009e73", lambda one: one.stages.tail + one.stages.final),
}
_GROUPS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#b8a400", "#66a61e", "#a6761d")
_LOCAL = "#6d7b84"
_MAP_RATES_BPS = np.logspace(5, 9, 33)
_MAP_SPEEDS = np.logspace(-6, 4, 31, base=2.0)


def write_pictures(folder: Path, situation: Situation) -> list[Path]:
    """Write the pictures that the profiles have numbers for.

    Args:
        folder: made where it is not there.
        situation: profiles, link, bounds.

    Returns:
        The files: `latency.png`, `narrow.png`, `rate.png`, `map.png`.

    Raises:
        MissingDependencyError: without matplotlib.
        ProfileError: profiles of two models.
        NothingPlannedError: no point can be taken.
        UsageError: the folder cannot be written to.
    """
    drawn: dict[str, Callable[[Axes, Situation, Plan], bool]] = {
        "latency": _latency,
        "narrow": _narrow,
        "rate": _rate,
        "map": _map,
    }
    plan = _plan(situation)
    paths = [_picture(folder / f"{name}.png", draw, situation, plan) for name, draw in drawn.items()]
    return [path for path in paths if path is not None]


def _picture(
    path: Path, draw: Callable[[Axes, Situation, Plan], bool], situation: Situation, plan: Plan
) -> Path | None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("pictures need matplotlib: pip install 'narrows[report]'") from None
    figure = Figure(figsize=_SIZE_IN, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if not draw(axes, situation, plan):
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror or error})") from None
    return path


def _plan(situation: Situation) -> Plan:
    link, conditions = situation.link, situation.conditions
    everything = predict(situation.device, situation.server, link, conditions)
    return best_of(everything, situation.constraints, situation.objective)


def _latency(axes: Axes, situation: Situation, plan: Plan) -> bool:
    rows = _leaders(situation, plan)
    left = np.zeros(len(rows))
    for name, (colour, took) in _PARTS.items():
        widths = np.array([took(one) for one in rows])
        axes.barh(range(len(rows)), widths, left=left, color=colour, label=name, height=0.7)
        left += widths
    for i, total in enumerate(left):
        axes.text(total, i, f" {total:.3g}", va="center", fontsize=7, color="#555")
    labels = [("▸ " if one is plan.best else "") + _short(str(one.point)) for one in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.legend(fontsize=7, frameon=False, ncols=len(_PARTS), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return True


def _narrow(axes: Axes, situation: Situation, plan: Plan) -> bool:
    places = positions(situation.device)
    if not places:
        return False
    whole = situation.device.whole.run
    end = max(places[-1].head_ms, whole.ms if whole else 0.0) or 1.0
    x = np.array([0.0, *(100 * one.head_ms / end for one in places), 100.0])
    symbols = np.array([places[0].symbols, *(one.symbols for one in places), places[-1].symbols], float)
    axes.fill_between(x, symbols, step="mid", color="#9fd3de", linewidth=0.8, edgecolor="#0b6b7d")
    for one in places:
        if one.measured:
            colour = "#d55e00" if one.name == plan.best.point.cut else "#1b2a33"
            at = 100 * one.head_ms / end
            axes.plot([at, at], [symbols.min() / 2, one.symbols], color=colour, linewidth=1)
            axes.plot(at, one.symbols, "o", color=colour, markersize=4)
    axes.set_yscale("log")
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=symbols.min() / 2)
    axes.set_xlabel("work before the cut, %")
    axes.set_ylabel("bytes that cross, at 8 bits")
    return True


def _rate(axes: Axes, situation: Situation, plan: Plan) -> bool:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    by_accuracy = any(one.accuracy is not None for one in plan.predictions)
    lines: dict[str, list[tuple[float, float]]] = {}
    for one in plan.predictions:
        value = one.accuracy if by_accuracy else one.agreement
        if value is not None and one.wire_bytes:
            lines.setdefault(group(one.point), []).append((one.wire_bytes, 100 * value))
    if not lines:
        return False
    for name, line in lines.items():
        sizes, values = zip(*sorted(line), strict=True)
        style = ":" if name.startswith("offload") else "-"
        axes.plot(sizes, values, f"o{style}", color=_colours(plan)[name], markersize=3, label=_short(name))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes on the wire")
    axes.set_ylabel("right answers, %" if by_accuracy else "the whole model's answer, %")
    axes.legend(fontsize=7, frameon=False)
    return True


def _map(axes: Axes, situation: Situation, plan: Plan) -> bool:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter

    colours = _colours(plan)
    names = list(colours)
    cells = [[names.index(_best_group(situation, rate, speed)) for rate in _MAP_RATES_BPS] for speed in _MAP_SPEEDS]
    shades = ListedColormap([colours[name] for name in names])
    axes.pcolormesh(
        _MAP_RATES_BPS / 1e6,
        _MAP_SPEEDS,
        np.array(cells),
        cmap=shades,
        vmin=-0.5,
        vmax=len(names) - 0.5,
        rasterized=True,
    )
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.plot(situation.link.bps / 1e6, 1 / situation.conditions.device_scale, "kx", markersize=8, markeredgewidth=2)
    axes.set_xlim(_MAP_RATES_BPS[0] / 1e6, _MAP_RATES_BPS[-1] / 1e6)
    axes.set_xlabel("Mbit/s")
    axes.set_ylabel("speed of the device, as measured = 1")
    seen = sorted({cell for row in cells for cell in row})
    handles = [Patch(color=colours[names[i]], label=_short(names[i])) for i in seen]
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return True


def _best_group(situation: Situation, rate_bps: float, speed: float) -> str:
    link = replace(situation.link, bps=float(rate_bps))
    conditions = replace(situation.conditions, device_scale=1 / float(speed))
    return group(_plan(replace(situation, link=link, conditions=conditions)).best.point)


def _leaders(situation: Situation, plan: Plan) -> list[Prediction]:
    """Of each cut, and of each other way, the best point under the bounds; by the work before the cut."""
    groups: dict[str, list[Prediction]] = {}
    for one in plan.predictions:
        groups.setdefault(group(one.point), []).append(one)
    found = [best_of(ones, situation.constraints, situation.objective).best for ones in groups.values()]
    ranks = {"offload": -1.0, "local": math.inf}
    return sorted(found, key=lambda one: ranks.get(one.point.mode, one.stages.head))


def _colours(plan: Plan) -> dict[str, str]:
    names = list(dict.fromkeys(group(one.point) for one in plan.predictions))
    return {name: _LOCAL if name == "local" else _GROUPS[i % len(_GROUPS)] for i, name in enumerate(names)}


def _short(name: str, most: int = 44) -> str:
    """A name as a label: its end where it is long, and no formula whatever it holds."""
    return (name if len(name) <= most else "…" + name[1 - most :]).replace("$", r"\$")
