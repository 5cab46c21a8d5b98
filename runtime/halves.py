"""A cut's two graphs, ready to run, and proven on this machine against the bundle's golden vectors."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .codec import Symbols
from .errors import BundleError, GoldenError, ShapeError
from .manifest import Cut, TensorSpec
from .session import SessionOptions, graph_errors, open_session

Array = NDArray[Any]

# Another processor or execution provider may round a value at the edge between two symbols the other way. One symbol in
# a hundred off by one level is that; more is another graph, or hardware that cannot be trusted with this one.
SYMBOL_SHARE = 0.01
SYMBOL_DISTANCE = 1
OUTPUT_TOLERANCE = 0.01
"""Of the largest absolute value of an output."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a head makes of one frame; no array has a batch axis."""

    symbols: tuple[Symbols, ...]
    """In the order of `Cut.crossing`."""
    outputs: dict[str, Array]
    """The model outputs that the head has already."""
    kept: dict[str, Array] = field(default_factory=dict)
    """What no server sees: `Cut.kept`, and the model's inputs in a three-way cut."""


class Head:
    """The device's graph of one cut."""

    def __init__(self, bundle: Bundle, cut: Cut, options: SessionOptions | None = None, *, golden: bool = True) -> None:
        """Load the graph and try it on the golden frame.

        Raises:
            BundleError: ONNX Runtime refuses the graph.
            GoldenError: this machine does not make the symbols that the bundle was made with.
        """
        self.cut = cut
        self._batched = bundle.manifest.batched
        self._specs = [spec for spec in bundle.manifest.inputs if spec.name in cut.head_inputs]
        self._session = open_session(bundle.file(cut.head), options)
        self._names = [*(tensor.symbols.name for tensor in cut.crossing), *cut.head_outputs, *cut.kept]
        if golden:
            self._check_golden(bundle)

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What `run` takes, in order."""
        return self._specs

    def run(self, inputs: Sequence[Array], quality: int = 0) -> Features:
        """Run one frame.

        Args:
            inputs: one array per spec of `inputs`, of its shape and dtype, without a batch axis.
            quality: index into `cut.qualities`.

        Raises:
            ShapeError: an input does not fit.
            QualityError: no such quality.
        """
        self.cut.check_quality(quality)
        feed: dict[str, Array] = {}
        for spec, array in zip(self._specs, inputs, strict=True):
            check_tensor(spec, array)
            feed[spec.name] = array[None] if self._batched else array
        if self.cut.quality_input is not None:
            feed[self.cut.quality_input] = np.array([quality], np.int32)
        results = self._session.run(self._names, feed)
        arrays = [result[0] if self._batched else result for result in results]
        count = len(self.cut.crossing)
        rest = dict(zip(self._names[count:], arrays[count:], strict=True))
        outputs = {name: rest[name] for name in self.cut.head_outputs}
        kept = {name: rest[name] for name in self.cut.kept}
        if self.cut.three_way:
            kept |= {spec.name: array for spec, array in zip(self._specs, inputs, strict=True)}
        return Features(tuple(arrays[:count]), outputs, kept)

    @property
    def providers(self) -> Sequence[str]:
        """The execution providers that could really be loaded, best first."""
        return [str(provider) for provider in self._session.get_providers()]

    def end_profile(self) -> str:
        """Path of ONNX Runtime's profile of the runs so far, where `SessionOptions.profile` asked for one."""
        return str(self._session.end_profiling())

    def _check_golden(self, bundle: Bundle) -> None:
        golden = load_arrays(bundle, self.cut.golden_head)
        inputs = [golden[f"input/{i}"] for i in range(len(self._specs))]
        for quality in range(len(self.cut.qualities)):
            for i, made in enumerate(self.run(inputs, quality).symbols):
                _compare_symbols(made, golden[f"symbols/{quality}/{i}"], self.cut, quality)


class Tail:
    """A graph of the server's for one cut: the cut's own tail, or a further one."""

    def __init__(
        self,
        bundle: Bundle,
        cut: Cut,
        options: SessionOptions | None = None,
        *,
        golden: bool = True,
        name: str | None = None,
    ) -> None:
        """Load the graph and try it on the golden symbols.

        Args:
            bundle: its server half at least.
            cut: one of its cuts.
            options: how to run the graph.
            golden: whether to try it.
            name: which of `cut.tail_names`; the cut's own where none is given.

        Raises:
            BundleError: ONNX Runtime refuses the graph.
            GoldenError: this machine does not give the answers that the bundle was made with.
            QualityError: no such tail.
        """
        self.cut = cut
        self.batched = bundle.manifest.batched
        graph, self._outputs, files = cut.tail, cut.tail_outputs, [cut.golden_tail]
        if name is not None and name != cut.tail_name:
            cut.check_tails([name])
            further = cut.further_tails[name]
            graph, self._outputs = further.graph, tuple(output.tensor.name for output in further.outputs)
            files.append(further.golden)
        self._back = len(cut.back) if graph == cut.tail else 0
        self._session = open_session(bundle.file(graph), options)
        if golden:
            self._check_golden({key: array for file in files for key, array in load_arrays(bundle, file).items()})

    @property
    def providers(self) -> Sequence[str]:
        """The execution providers that could really be loaded, best first."""
        return [str(provider) for provider in self._session.get_providers()]

    def run(self, frames: Sequence[Sequence[Symbols]], qualities: Sequence[int]) -> list[dict[str, Array]]:
        """Run several frames as one batch, or one after the other where the model takes no batch.

        Args:
            frames: for each frame, the symbols in the order of `cut.crossing`, without a batch axis.
            qualities: each frame's quality.

        Returns:
            For each frame, the tail's outputs by name, without a batch axis.

        Raises:
            ShapeError: the graph refuses the symbols.
        """
        if not self.batched:
            return [self._run([*symbols], [q]) for symbols, q in zip(frames, qualities, strict=True)]
        stacked = [np.stack(column) for column in zip(*frames, strict=True)]
        results = self._run(stacked, qualities)
        return [{name: array[i] for name, array in results.items()} for i in range(len(frames))]

    def _run(self, arrays: list[Array], qualities: Sequence[int]) -> dict[str, Array]:
        feed = {tensor.symbols.name: a for tensor, a in zip(self.cut.crossing, arrays, strict=True)}
        if self.cut.quality_input is not None:
            feed[self.cut.quality_input] = np.array(qualities, np.int32)
        try:
            results = self._session.run(self._outputs, feed)
        except graph_errors() as error:
            raise ShapeError(f"the tail refuses these symbols: {error}") from error
        return dict(zip(self._outputs, results, strict=True))

    def _check_golden(self, golden: Mapping[str, Array]) -> None:
        for quality in range(len(self.cut.qualities)):
            symbols = [golden[f"symbols/{quality}/{i}"] for i in range(len(self.cut.crossing))]
            answer = self.run([symbols], [quality])[0]
            for i, name in enumerate(self._outputs):
                if i < self._back:
                    _compare_symbols(answer[name], golden[f"output/{quality}/{i}"], self.cut, quality)
                else:
                    compare_output(answer[name], golden[f"output/{quality}/{i}"], name, quality)


class Final:
    """The device's last graph of a three-way cut: what the server's body sent back becomes the model's outputs."""

    def __init__(self, bundle: Bundle, cut: Cut, options: SessionOptions | None = None, *, golden: bool = True) -> None:
        """Load the graph and try it on the golden vectors.

        Raises:
            BundleError: the cut has no such graph, or ONNX Runtime refuses it.
            GoldenError: this machine does not give the answers that the bundle was made with.
        """
        if cut.final is None or cut.golden_final is None:
            raise BundleError(f"cut {cut.name!r} has no final graph; the server's answer is the model's")
        self.cut = cut
        self._batched = bundle.manifest.batched
        self._session = open_session(bundle.file(cut.final), options)
        self._inputs = [value.name for value in self._session.get_inputs() if value.name != cut.quality_input]
        if golden:
            self._check_golden(load_arrays(bundle, cut.golden_final))

    def run(self, features: Features, answer: Mapping[str, Array], quality: int = 0) -> dict[str, Array]:
        """Finish one frame.

        Args:
            features: what the head made of it.
            answer: what the server sent back: `Cut.tail_outputs`, without a batch axis.
            quality: the quality that the frame went out with.

        Returns:
            The model's outputs without a batch axis: `Cut.final_outputs`, and those that head and body had already.

        Raises:
            ShapeError: the answer is not one that the body gives.
        """
        available = {**features.kept, **features.outputs, **answer}
        for tensor in self.cut.back:
            if tensor.symbols.name not in available:
                raise ShapeError(f"the answer lacks {tensor.symbols.name!r}, which the final graph takes")
            check_tensor(tensor.symbols, available[tensor.symbols.name])
        made = self._run({name: available[name] for name in self._inputs}, quality)
        body = {name: answer[name] for name in self.cut.tail_outputs[len(self.cut.back) :]}
        return features.outputs | body | made

    def _run(self, arrays: dict[str, Array], quality: int) -> dict[str, Array]:
        feed = {name: array[None] if self._batched else array for name, array in arrays.items()}
        if self.cut.quality_input is not None:
            feed[self.cut.quality_input] = np.array([quality], np.int32)
        try:
            results = self._session.run(self.cut.final_outputs, feed)
        except graph_errors() as error:
            raise ShapeError(f"the final graph refuses this answer: {error}") from error
        made = [result[0] if self._batched else result for result in results]
        return dict(zip(self.cut.final_outputs, made, strict=True))

    def _check_golden(self, golden: dict[str, Array]) -> None:
        for quality in range(len(self.cut.qualities)):
            made = self._run({n: golden[f"input/{quality}/{i}"] for i, n in enumerate(self._inputs)}, quality)
            for i, name in enumerate(self.cut.final_outputs):
                compare_output(made[name], golden[f"output/{quality}/{i}"], name, quality)


def check_tensor(spec: TensorSpec, array: Array) -> None:
    """Hold one frame's array against its spec.

    Raises:
        ShapeError: naming both.
    """
    fits = len(array.shape) == len(spec.shape) and all(
        want is None or want == have for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if not fits or array.dtype != np.dtype(spec.dtype):
        shape = "×".join("?" if d is None else str(d) for d in spec.shape)
        found = "×".join(map(str, array.shape))
        raise ShapeError(f"{spec.name!r} takes {spec.dtype} {shape}; {array.dtype} {found} came")


def load_arrays(bundle: Bundle, name: str) -> dict[str, Array]:
    """Read an `.npz` of the bundle; pickled objects are refused.

    Raises:
        BundleError: it is not one.
    """
    try:
        with np.load(bundle.file(name), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{bundle.root}: {name} cannot be read ({error})") from None


def _compare_symbols(made: Symbols, golden: Symbols, cut: Cut, quality: int) -> None:
    if made.shape != golden.shape or made.dtype != golden.dtype:
        raise GoldenError(
            f"the head of {cut.name!r} makes {made.dtype} {made.shape}, not {golden.dtype} {golden.shape}"
        )
    if not np.issubdtype(made.dtype, np.integer):
        compare_output(made, golden, cut.name, quality)
        return
    distance = np.abs(made.astype(np.int64) - golden.astype(np.int64))
    if distance.size and (distance.max() > SYMBOL_DISTANCE or np.mean(distance > 0) > SYMBOL_SHARE):
        raise GoldenError(
            f"this machine does not reproduce the head of {cut.name!r}: at quality {quality}, "
            f"{np.count_nonzero(distance)} of {distance.size} symbols differ, by up to {distance.max()}; "
            "try another execution provider, or cut the model on a machine like this one"
        )


def compare_output(made: Array, golden: Array, name: str, quality: int) -> None:
    """Hold what this machine made of a golden input against what it should be.

    Raises:
        GoldenError: it is another.
    """
    if made.shape != golden.shape or made.dtype != golden.dtype:
        raise GoldenError(f"{name!r} comes out as {made.dtype} {made.shape}, not {golden.dtype} {golden.shape}")
    a, b = made.astype(np.float64), golden.astype(np.float64)
    scale = float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b))) or 1.0
    worst = float(np.max(np.abs(np.nan_to_num(a) - np.nan_to_num(b)), initial=0.0))
    if worst > OUTPUT_TOLERANCE * scale:
        raise GoldenError(
            f"this machine does not reproduce {name!r}: at quality {quality} it is off by {worst:.3g} "
            f"where the largest value is {scale:.3g}; try another execution provider"
        )
