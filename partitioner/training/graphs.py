"""A trained student as ONNX: one graph that is cut at the bottleneck, and graphs that begin at its symbols."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import TensorProto, compose, helper
from torch import nn

from ..model import Model
from ..quantise import QuantiserTable, dequantiser_nodes
from ..shapes import BATCH, Dim, TensorInfo
from ..split import prepend, value_info
from ..torch_source import Module, export

Tensor = torch.Tensor

BOTTLENECK = "bottleneck"
"""The tensor that crosses."""
INPUT = "input"


def student_model(encoder: nn.Module, rest: nn.Module, example: Tensor, name: str, output: str) -> Model:
    """Encoder and the rest, without a quantiser between them: what a cut at `BOTTLENECK` splits.

    Args:
        encoder: normalised pictures to the bottleneck.
        rest: the bottleneck to the answer.
        example: `float32 [2, 3, H, W]`.
        name: the model's.
        output: the answer's name.

    Raises:
        ModelError: torch cannot export it.
    """
    with torch.no_grad():
        bottleneck = encoder(example)
    first = _proto(encoder, example, "encoder", INPUT, BOTTLENECK)
    second = _proto(rest, bottleneck, "rest", BOTTLENECK, output)
    merged = compose.merge_models(first, second, io_map=[(BOTTLENECK, BOTTLENECK)], name=name)
    merged.ir_version = first.ir_version
    return Model(name, merged)


def graph_from_symbols(
    module: nn.Module, example: Tensor, table: QuantiserTable, *, symbols: str, quality: str, output: str
) -> onnx.ModelProto:
    """A graph that takes symbols and their quality as a cut's tail does, and answers with a module's output.

    Args:
        module: the bottleneck `float32 [B, C, h, w]` to one answer.
        example: a bottleneck, its batch 2.
        table: of the quantiser.
        symbols: name of the first input.
        quality: name of the second, `int32 [B]`.
        output: name of the answer.
    """
    proto = _proto(module, example, "rest", BOTTLENECK, output)
    batch, dims = Dim(1, BATCH), tuple(Dim(size) for size in example.shape[1:])
    info = TensorInfo(TensorProto.FLOAT, (batch, *dims))
    front = onnx.GraphProto()
    dequantiser_nodes(front, symbols, BOTTLENECK, info=info, table=table, quality=quality)
    prepend(proto.graph, front)
    del proto.graph.input[:]
    proto.graph.input.append(value_info(symbols, TensorProto.UINT8, info.dims))
    proto.graph.input.append(helper.make_tensor_value_info(quality, TensorProto.INT32, [BATCH]))
    return proto


def plain_proto(module: nn.Module, example: Tensor) -> onnx.ModelProto:
    """A module with one input and one output as ONNX, weights in memory."""
    return _proto(module, example, "module", INPUT, "output")


def _proto(module: nn.Module, example: Tensor, prefix: str, source: str, target: str) -> onnx.ModelProto:
    """A module as ONNX with one input and one output of these names, and every other name under a prefix."""
    # Wrapped: the exporter that traces takes the `graph` of a torch.fx module for its own.
    model = export(Module(nn.Sequential(module).eval(), (example.contiguous(),)), prefix)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    onnx.load_external_data_for_model(proto, str(model.folder or Path()))
    proto = compose.add_prefix(proto, f"{prefix}/")
    renamed = {proto.graph.input[0].name: source, proto.graph.output[0].name: target}
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = renamed.get(name, name)
    proto.graph.input[0].name, proto.graph.output[0].name = source, target
    del proto.graph.value_info[:]
    return proto
