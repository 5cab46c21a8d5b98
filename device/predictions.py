"""A model's outputs, in the form that the caller wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..runtime.answer import Array, Form, TopClass, Wanted, best_classes, classifier
from ..runtime.errors import ShapeError
from ..runtime.halves import check_tensor
from ..runtime.manifest import Cut, Manifest, OutputSpec
from .outcome import Answer, Prediction


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes answers of tensors and classes, wherever they were computed: the model's, or those of a further tail."""

    outputs: tuple[OutputSpec, ...]
    labels: tuple[str, ...]
    wanted: Wanted

    def read(self, held: Mapping[str, Array], top: tuple[TopClass, ...] = ()) -> Answer:
        """The outputs in their own order, as far as they were asked for, and the best classes.

        Args:
            held: outputs by name, without batch axes.
            top: the best classes, where who answered has found them already.

        Raises:
            ShapeError: tensors that are not the bundle's, or too few.
        """
        outputs = {}
        for output in self.outputs:
            name = output.tensor.name
            if name in held:
                check_tensor(output.tensor, held[name])
                outputs[name] = held[name]
        labelled = classifier(self.outputs)
        if not top and labelled is not None and labelled.tensor.name in outputs:
            top = best_classes(outputs[labelled.tensor.name], labelled.kind, self.wanted.top)
        if len(outputs) < len(self.outputs) and not top:
            missing = [o.tensor.name for o in self.outputs if o.tensor.name not in outputs]
            raise ShapeError(f"the answer lacks {', '.join(missing)}")
        if top and self.wanted.form is Form.TOP:
            outputs = {}
        return Answer(outputs, tuple(self._named(one) for one in top))

    def _named(self, best: TopClass) -> Prediction:
        label = self.labels[best.index] if best.index < len(self.labels) else None
        return Prediction(best.index, label, best.score)


def tail_readers(manifest: Manifest, cut: Cut, wanted: Wanted) -> dict[str, Reader]:
    """What reads the answers of each tail of a cut, by the tail's name."""
    further = {name: Reader(tail.outputs, tail.labels, wanted) for name, tail in cut.further_tails.items()}
    return {cut.tail_name: Reader(manifest.outputs, manifest.labels, wanted), **further}
