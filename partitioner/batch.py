"""A batch of any length, for models that were exported with a batch of one."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from .model import Model
from .shapes import BATCH, batched


def with_batch(model: Model) -> Model | None:
    """The same model with axis 0 of every input open, or None where an input's first axis is no batch of one.

    Constants that say a batch of one to a `Reshape` are taught to say "as it is". Whether the result is the same model
    has to be tried: see `prove.check_batch`.
    """
    if batched(model.proto):
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if not dims or dims[0].dim_value not in (0, 1):
            return None
        dims[0].Clear()
        dims[0].dim_param = BATCH
    _forget_shapes(proto)
    _open_reshapes(proto.graph)
    return model.with_proto(proto)


def with_one(model: Model) -> Model:
    """The same model with a batch of exactly one."""
    if not batched(model.proto):
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for value in proto.graph.input:
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        dim.dim_value = 1
    _forget_shapes(proto)
    return model.with_proto(proto)


def _forget_shapes(proto: onnx.ModelProto) -> None:
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _open_reshapes(graph: onnx.GraphProto) -> None:
    """In the constant shapes of `Reshape`, a leading 1 becomes -1, or 0 ("as the input") where a -1 is taken."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        tensor = constants.get(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
        if tensor is None or any(a.name == "allowzero" and a.i for a in node.attribute):
            continue
        shape = numpy_helper.to_array(tensor).copy()
        if shape.size < 2 or shape[0] != 1:
            continue
        shape[0] = 0 if -1 in shape else -1
        name = f"narrows/{node.output[0]}/shape"
        graph.initializer.append(numpy_helper.from_array(shape.astype(np.int64), name))
        node.input[1] = name
