"""bfloat16 models in float32: every bfloat16 is a float32 with zeros at its end, so no weight changes.

ONNX Runtime's CPU provider has no kernels for bfloat16, neither where a cut is proven nor on a board.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from .check import subgraphs
from .store import is_external

_FROM, _TO = TensorProto.BFLOAT16, TensorProto.FLOAT


def upcast(proto: onnx.ModelProto, folder: Path | None) -> bool:
    """Turn every bfloat16 of a model into float32, in place. Those that lie in other files, under `folder`, are read.

    Returns:
        Whether there was one.
    """
    return _upcast(proto.graph, folder)


def _upcast(graph: onnx.GraphProto, folder: Path | None) -> bool:
    found = [_retype(value.type) for values in (graph.input, graph.output, graph.value_info) for value in values]
    found += [_widen(tensor, folder) for tensor in graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                found.append(_widen(attribute.t, folder))
            elif attribute.name in ("to", "dtype", "output_dtype") and attribute.i == _FROM:
                attribute.i = _TO
                found.append(True)
        found += [_upcast(inner, folder) for inner in subgraphs(node)]
    return any(found)


def _retype(kind: onnx.TypeProto) -> bool:
    if kind.tensor_type.elem_type != _FROM:
        return False
    kind.tensor_type.elem_type = _TO
    return True


def _widen(tensor: TensorProto, folder: Path | None) -> bool:
    if tensor.data_type != _FROM:
        return False
    if is_external(tensor):
        load_external_data_for_tensor(tensor, str(folder or "."))
    wide = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(_TO))
    tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    return True
