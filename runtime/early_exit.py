"""The early exit of a cut: an answer on the device from what the head has made, and how sure it is of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .errors import BundleError, ShapeError
from .halves import Features, compare_output, load_arrays
from .manifest import Cut
from .session import SessionOptions, graph_errors, open_session

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class EarlyAnswer:
    """What the exit makes of one frame."""

    outputs: dict[str, Array]
    """The model's outputs, without batch axes."""
    confidence: float
    """In the best class, 0…1."""


class EarlyExit:
    """A cut's exit graph, proven on this machine (Teerapittayanon et al., BranchyNet, ICPR 2016; Laskaridis et al.,
    SPINN, MobiCom 2020, section 3)."""

    def __init__(self, bundle: Bundle, cut: Cut, options: SessionOptions | None = None, *, golden: bool = True) -> None:
        """Load the graph and try it on the golden vectors.

        Raises:
            BundleError: the cut has no exit, ONNX Runtime refuses it, or it takes what the head does not have.
            GoldenError: this machine does not give the answers that the bundle was made with.
        """
        if cut.exit is None:
            raise BundleError(f"cut {cut.name!r} has no early exit; train one, or leave it to the server")
        self.cut = cut
        self.exit = cut.exit
        self._batched = bundle.manifest.batched
        self._sure = next(
            o for o in bundle.manifest.outputs if o.kind != "tensor" and o.tensor.name in cut.exit.outputs
        )
        self._session = open_session(bundle.file(cut.exit.graph), options)
        self._takes_quality, self._inputs = self._look_at_inputs()
        self.first_s = 0.0
        """What one run took while loading, in seconds."""
        if golden:
            self._check_golden(load_arrays(bundle, cut.exit.golden))

    def run(self, features: Features, quality: int) -> EarlyAnswer:
        """Answer one frame.

        Args:
            features: what the head made of it.
            quality: that of its symbols.

        Raises:
            ShapeError: the graph refuses the features.
        """
        made = dict(zip((t.symbols.name for t in self.cut.crossing), features.symbols, strict=True))
        available = {**features.outputs, **features.kept, **made}
        answer = self._run([available[name] for name in self._inputs], quality)
        sure = confidence(answer[self._sure.tensor.name], self._sure.kind, self.exit.qualities[quality].temperature)
        return EarlyAnswer({**features.outputs, **answer}, sure)

    def _look_at_inputs(self) -> tuple[bool, list[str]]:
        names = [value.name for value in self._session.get_inputs()]
        has = {t.symbols.name for t in self.cut.crossing} | {*self.cut.head_outputs, *self.cut.kept}
        quality = self.cut.quality_input
        if strange := [name for name in names if name not in has and name != quality]:
            raise BundleError(f"the early exit of {self.cut.name!r} takes {', '.join(strange)}, which the head has not")
        return quality in names, [name for name in names if name != quality]

    def _run(self, arrays: list[Array], quality: int) -> dict[str, Array]:
        feed = {n: a[None] if self._batched else a for n, a in zip(self._inputs, arrays, strict=True)}
        if self._takes_quality and self.cut.quality_input is not None:
            feed[self.cut.quality_input] = np.array([quality], np.int32)
        try:
            results = self._session.run(self.exit.outputs, feed)
        except graph_errors() as error:
            raise ShapeError(f"the early exit refuses these features: {error}") from error
        made = [result[0] if self._batched else result for result in results]
        return dict(zip(self.exit.outputs, made, strict=True))

    def _check_golden(self, golden: dict[str, Array]) -> None:
        for quality in range(len(self.cut.qualities)):
            arrays = [golden[f"input/{quality}/{i}"] for i in range(len(self._inputs))]
            began = time.monotonic()
            answer = self._run(arrays, quality)
            self.first_s = time.monotonic() - began
            for i, (name, made) in enumerate(answer.items()):
                compare_output(made, golden[f"output/{quality}/{i}"], name, quality)


def confidence(output: Array, kind: str, temperature: float = 1.0) -> float:
    """The largest of softmax(logits / temperature), 0…1; what is not finite is no confidence at all.

    Args:
        output: scores of the classes, any shape; taken flat.
        kind: `OutputSpec.kind`; of `probabilities` the logarithm is taken first.
        temperature: above 1 for an exit that is too sure of itself.
    """
    logits = output.reshape(-1).astype(np.float64)
    if kind == "probabilities":
        logits = np.log(np.maximum(logits, np.finfo(np.float64).tiny))
    if not logits.size or not np.isfinite(logits).all():
        return 0.0
    return float(1 / np.exp((logits - logits.max()) / temperature).sum())
