"""The whole model on the device, where the bundle carries it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..runtime.answer import Array
from ..runtime.bundle import Bundle
from ..runtime.errors import BundleError, ShapeError
from ..runtime.halves import check_tensor, load_arrays
from ..runtime.session import SessionOptions, graph_errors, open_session


class LocalModel:
    """`manifest.local`: takes the manifest's inputs (preprocessing is in the graph), gives its outputs."""

    def __init__(self, bundle: Bundle, options: SessionOptions | None = None) -> None:
        """Load the graph, and run it on a golden input twice: once to warm up, once to see how long it takes.

        Raises:
            BundleError: the bundle carries none, ONNX Runtime refuses it, or it is not of the manifest's shapes.
        """
        manifest = bundle.manifest
        if manifest.local is None:
            raise BundleError(f"{manifest.name!r} carries no whole model for the device; cut it again with one")
        self._manifest = manifest
        self._names = [output.tensor.name for output in manifest.outputs]
        self._session = open_session(bundle.file(manifest.local), options)
        self.first_s = self._try(bundle)
        """What one run took while loading, in seconds."""

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Run one frame.

        Args:
            inputs: one array per input of the manifest, in order, without a batch axis.

        Returns:
            Outputs by name, without batch axes.

        Raises:
            ShapeError: an input does not fit.
        """
        batched = self._manifest.batched
        feed = {}
        for spec, array in zip(self._manifest.inputs, inputs, strict=True):
            check_tensor(spec, array)
            feed[spec.name] = array[None] if batched else array
        try:
            results = self._session.run(self._names, feed)
        except graph_errors() as error:
            raise ShapeError(f"the whole model refuses this input: {error}") from error
        return {name: r[0] if batched else r for name, r in zip(self._names, results, strict=True)}

    def _try(self, bundle: Bundle) -> float:
        cut = self._manifest.cuts[0]
        golden = load_arrays(bundle, cut.golden_head)
        known = {name: golden[f"input/{i}"] for i, name in enumerate(cut.head_inputs)}
        if any(spec.name not in known for spec in self._manifest.inputs):
            return 0.0
        inputs = [known[spec.name] for spec in self._manifest.inputs]
        try:
            for output, array in zip(self._manifest.outputs, self.run(inputs).values(), strict=True):
                check_tensor(output.tensor, array)
        except ShapeError as error:
            raise BundleError(f"{bundle.root}: {self._manifest.local} is not the manifest's model ({error})") from None
        began = time.monotonic()
        self.run(inputs)
        return time.monotonic() - began
