"""Preprocessing that is said once, when cutting: parsed from a line of text, and put in front of the head's graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.errors import UsageError
from ..runtime.manifest import Preprocess
from .model import Model
from .shapes import BATCH, batched, is_float

IMAGE_NAMES = ("image", "picture")
"""Names for the input that takes pictures: the first that the model has not taken itself."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_KEYS = "size order mean std scale layout fit crop fill"


def parse(text: str | Preprocess | None, model: Model) -> Preprocess | None:
    """Read what `--preprocess` says.

    Args:
        text: `imagenet`, `none`, or `size=227,order=bgr,mean=104/117/123,std=1/1/1,scale=1,layout=nchw`, to which
            `fit=crop|stretch|pad`, `crop=0.875` and `fill=114` may be added. `size` is one number or `HxW`. Means and
            deviations are in the order of the model's channels. Size and layout come from the model when left out.
        model: the model, whose input says what size and layout it takes.

    Raises:
        UsageError: a key or a value that is not known, or that contradicts the model.
    """
    if text is None or text == "none":
        return None
    if isinstance(text, Preprocess):
        return _check(text, model)
    layout, height, width = _picture_input(model)
    options = {"layout": layout}
    for part in [] if text == "imagenet" else text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key.strip() not in _KEYS.split():
            raise UsageError(f"--preprocess: {part!r} is not KEY=VALUE with KEY one of {_KEYS}, nor is it `imagenet`")
        options[key.strip()] = value.strip()
    if "size" in options:
        height, width = _size(options.pop("size"))
    if options["layout"] != layout and layout:
        raise UsageError(f"--preprocess: layout={options['layout']}, but the model's input is {layout}")
    base = Preprocess(height or 224, width or 224)
    if text == "imagenet":
        return _check(
            replace(
                base,
                crop=0.875,
                scale=1 / 255,
                mean=_IMAGENET_MEAN,
                std=_IMAGENET_STD,
                layout=cast(Any, layout or "nchw"),
            ),
            model,
        )
    return _check(_fill(base, options), model)


def _fill(base: Preprocess, options: dict[str, str]) -> Preprocess:
    for key, allowed in (("order", ("rgb", "bgr")), ("layout", ("nchw", "nhwc")), ("fit", ("crop", "stretch", "pad"))):
        if options.get(key) and options[key] not in allowed:
            raise UsageError(f"--preprocess: {key} is one of {', '.join(allowed)}, not {options[key]!r}")
    try:
        return replace(
            base,
            order=cast(Any, options.get("order", "rgb")),
            layout=cast(Any, options["layout"] or "nchw"),
            fit=cast(Any, options.get("fit", "crop")),
            crop=float(options.get("crop", 1.0)),
            fill=int(options.get("fill", 114)),
            scale=_number(options.get("scale", "1")),
            mean=_three(options.get("mean", "0")),
            std=_three(options.get("std", "1")),
        )
    except ValueError as error:
        raise UsageError(f"--preprocess: {error}") from None


def _number(text: str) -> float:
    """A number, or a fraction such as 1/255."""
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(above)


def _three(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split("/"))
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise ValueError(f"one number or three joined by / were expected, not {text!r}")
    return values


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise UsageError(f"--preprocess: size is a number or HxW, not {text!r}") from None


def _check(preprocess: Preprocess, model: Model) -> Preprocess:
    """Hold it against the model's input."""
    layout, height, width = _picture_input(model)
    if (height or preprocess.height) != preprocess.height or (width or preprocess.width) != preprocess.width:
        raise UsageError(
            f"--preprocess: size {preprocess.height}x{preprocess.width}, but the model takes {height}x{width}"
        )
    if layout and layout != preprocess.layout:
        raise UsageError(f"--preprocess: layout={preprocess.layout}, but the model's input is {layout}")
    if min(preprocess.height, preprocess.width) < 1 or not 0 < preprocess.crop <= 1 or 0.0 in preprocess.std:
        raise UsageError("--preprocess: sizes are above 0, crop is above 0 and at most 1, std is never 0")
    return preprocess


def _picture_input(model: Model) -> tuple[str, int | None, int | None]:
    """Layout ("" where nothing tells), height and width of the model's one input.

    Raises:
        UsageError: the model takes no single picture.
    """
    inputs = model.proto.graph.input
    dims = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else ()
    if len(dims) != 4:
        raise UsageError(
            "--preprocess needs a model with one input of four axes; this one takes "
            + ", ".join(f"{v.name!r} of {len(v.type.tensor_type.shape.dim)}" for v in inputs)
        )
    sizes = [dim.dim_value or None for dim in dims]
    first, last = sizes[1] == 3, sizes[3] == 3
    if not first and not last and sizes[1] and sizes[3]:
        raise UsageError(f"--preprocess needs a model that takes three colours; this one takes {sizes}")
    layout = "nhwc" if last and not first else "nchw" if first else ""
    return layout, *((sizes[1], sizes[2]) if layout == "nhwc" else (sizes[2], sizes[3]))


def with_pictures(model: Model, preprocess: Preprocess) -> Model:
    """The model with preprocessing in front: its input is `uint8 [B, height, width, 3]`, RGB."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    value = proto.graph.input[0]
    target, dtype = value.name, value.type.tensor_type.elem_type
    taken = {target} | {name for node in proto.graph.node for name in node.output}
    image = next(name for name in (*IMAGE_NAMES, f"{target}.{IMAGE_NAMES[0]}") if name not in taken)
    nodes, constants = _nodes(preprocess, image, target, dtype)
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *rest])
    proto.graph.initializer.extend(constants)
    batch = BATCH if batched(model.proto) else 1
    value.CopyFrom(
        helper.make_tensor_value_info(image, TensorProto.UINT8, [batch, preprocess.height, preprocess.width, 3])
    )
    return model.with_proto(proto)


def _nodes(
    preprocess: Preprocess, image: str, target: str, dtype: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """(byte × scale - mean) / std, in the model's order, layout and element type.

    Bytes change places before they become floats, four times as large. Constants span a row at least: ONNX Runtime
    takes ten times as long where what is repeated is three numbers.
    """
    steps: list[tuple[str, list[str], dict[str, Any]]] = []
    constants: list[onnx.TensorProto] = []
    first = preprocess.layout == "nchw"

    def constant(name: str, array: object) -> str:
        constants.append(numpy_helper.from_array(np.asarray(array), f"narrows/{name}"))
        return f"narrows/{name}"

    def per_channel(name: str, values: Sequence[float]) -> str:
        array = np.array(values, np.float32)
        return constant(name, array[:, None, None] if first else np.tile(array, (preprocess.width, 1)))

    if preprocess.order == "bgr":
        steps.append(("Gather", [constant("bgr", np.array([2, 1, 0], np.int64))], {"axis": 3}))
    if first:
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    # A model that takes bytes gets them untouched where nothing is to be computed.
    factors, offsets = preprocess.affine
    scaled = any(factor != 1 for factor in factors) or any(offsets)
    if scaled:
        steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
        steps.append(("Mul", [per_channel("factors", factors)], {}))
        if any(offsets):
            steps.append(("Add", [per_channel("offsets", offsets)], {}))
    have = TensorProto.FLOAT if scaled else TensorProto.UINT8
    if scaled and not is_float(dtype):
        steps.append(("Floor", [], {}))
    if dtype != have:
        steps.append(("Cast", [], {"to": dtype}))
    if not steps:
        steps.append(("Identity", [], {}))
    nodes, source = [], image
    for i, (kind, more, attributes) in enumerate(steps):
        made = target if i == len(steps) - 1 else f"narrows/{image}{i}"
        nodes.append(helper.make_node(kind, [source, *more], [made], **attributes))
        source = made
    return nodes, constants
