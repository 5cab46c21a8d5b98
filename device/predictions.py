"""A model's outputs, in the form that the caller wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..runtime.answer import Array, Form, TopClass, Wanted, best_classes, classifier
from ..runtime.errors import ShapeError
from ..runtime.halves import check_tensor
from ..runtime.manifest import Manifest
from .outcome import Prediction

Answer = tuple[dict[str, Array], tuple[Prediction, ...]]


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes answers of tensors and classes, wherever they were computed."""

    manifest: Manifest
    wanted: Wanted

    def read(self, held: Mapping[str, Array], top: tuple[TopClass, ...] = ()) -> Answer:
        """The model's outputs in its own order, as far as they were asked for, and the best classes.

        Args:
            held: outputs by name, without batch axes.
            top: the best classes, where who answered has found them already.

        Raises:
            ShapeError: tensors that are not the bundle's, or too few.
        """
        outputs = {}
        for output in self.manifest.outputs:
            name = output.tensor.name
            if name in held:
                check_tensor(output.tensor, held[name])
                outputs[name] = held[name]
        labelled = classifier(self.manifest)
        if not top and labelled is not None and labelled.tensor.name in outputs:
            top = best_classes(outputs[labelled.tensor.name], labelled.kind, self.wanted.top)
        if len(outputs) < len(self.manifest.outputs) and not top:
            missing = [o.tensor.name for o in self.manifest.outputs if o.tensor.name not in outputs]
            raise ShapeError(f"the answer lacks {', '.join(missing)}")
        if top and self.wanted.form is Form.TOP:
            outputs = {}
        return outputs, tuple(self._named(one) for one in top)

    def _named(self, best: TopClass) -> Prediction:
        labels = self.manifest.labels
        return Prediction(best.index, labels[best.index] if best.index < len(labels) else None, best.score)
