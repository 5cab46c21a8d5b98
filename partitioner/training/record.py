"""What training tells while it runs."""

from __future__ import annotations

from typing import Protocol


class Recorder(Protocol):
    """Takes curves: TensorBoard files, a list in a test, nothing at all."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve.

        Args:
            name: such as "features/train/loss", "fine-tune/val/accuracy/q0": stage, split, what.
            value: finite.
            step: optimiser steps since the run's first; what is resumed goes on counting, so that a step may be told
                again after a kill.
        """
        ...

    def close(self) -> None:
        """Write what is still to be written."""
        ...


class Silent:
    """Keeps nothing."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Forget it."""

    def close(self) -> None:
        """Nothing to do."""
