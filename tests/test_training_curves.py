"""What a training leaves to look at."""

from __future__ import annotations

import builtins
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from narrows.partitioner.training.curves import Curves, RateCurve, RatePoint, plot_rate_accuracy, write_metrics
from narrows.runtime.errors import MissingDependencyError, UsageError
from PIL import Image


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    real = builtins.__import__

    def guarded(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(missing):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)


def test_tensorboard_reads_the_curves_of_a_run_that_was_taken_up_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start in (0, 3):
        curves = Curves(tmp_path)
        for step in range(start, start + 3):
            curves.scalar("features/train/loss", 1 / (step + 1), step)
        curves.scalar("features/train/loss", float("nan"), 9)
        curves.close()
    read: dict[int, float] = {}
    for file in sorted((tmp_path / "curves").iterdir()):
        events = EventAccumulator(str(file)).Reload()
        read |= {e.step: e.value for e in events.Scalars("features/train/loss")}
    assert read == pytest.approx({step: 1 / (step + 1) for step in range(6)})


def test_a_training_is_not_lost_for_its_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without(monkeypatch, "torch.utils.tensorboard")
    with caplog.at_level(logging.WARNING):
        curves = Curves(tmp_path)
    curves.scalar("a", 1.0, 0)
    curves.close()
    assert "narrows[train]" in caplog.text


def test_metrics_are_json_whatever_the_numbers(tmp_path: Path) -> None:
    path = write_metrics(tmp_path, {"loss": float("inf"), "qualities": ({"bytes": 12.5},), "name": "a"})
    assert json.loads(path.read_text()) == {"loss": None, "qualities": [{"bytes": 12.5}], "name": "a"}
    write_metrics(tmp_path, {"loss": 1.0})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ladder = RateCurve("ladder", (RatePoint(40, 0.9, 0.01), RatePoint(160, 0.93, 0.005)))
    jpeg = RateCurve("JPEG", (RatePoint(900, 0.9),), connected=False)
    plot_rate_accuracy(tmp_path / "plot.png", [ladder, jpeg], title="flowers", teacher=0.94)
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20)) > 3
    with pytest.raises(UsageError, match="a point at least"):
        plot_rate_accuracy(tmp_path / "none.png", [RateCurve("a", ())], title="")


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "matplotlib")
    with pytest.raises(MissingDependencyError, match=r"narrows\[train\]"):
        plot_rate_accuracy(tmp_path / "p.png", [RateCurve("a", (RatePoint(1, 1),))], title="")
