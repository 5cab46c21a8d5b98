"""Tensors of the Open Inference Protocol as arrays, and back: for a server's requests and a device's responses."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..protos import oip_pb2 as pb
from .errors import FrameError, FrameTooLargeError, ShapeError

Array = NDArray[Any]

OipTensor = pb.ModelInferRequest.InferInputTensor | pb.ModelInferResponse.InferOutputTensor

SERVICE = "inference.GRPCInferenceService"
TAIL = ".tail"
"""Behind a bundle's name: a model that takes the symbols of its first cut as they are."""
BYTES = "BYTES"
_NAMES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_DATATYPES = {numpy: name for name, numpy in _NAMES.items()}
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_LENGTH_BYTES = 4


def datatype_of(dtype: str) -> str:
    """The protocol's name of a NumPy element type; BF16 for what a bundle carries as its bits."""
    return "BF16" if dtype == "bfloat16" else _DATATYPES[dtype]


def config_type_of(dtype: str) -> str:
    """The same as a model's configuration has it."""
    return f"TYPE_{datatype_of(dtype)}"


def tensors_of(
    tensors: Sequence[OipTensor], raw_contents: Sequence[bytes], max_elements: int
) -> dict[str, Array | list[bytes]]:
    """A message's tensors by name: arrays of the shape that it says, or the elements of a BYTES tensor, flat.

    Args:
        tensors: the inputs of a request or the outputs of a response.
        raw_contents: the message's raw contents; empty where the tensors carry typed ones.
        max_elements: of one tensor.

    Raises:
        FrameError: an element type that is unknown, or contents in two places.
        ShapeError: contents that do not fill their shape.
        FrameTooLargeError: more elements than the cap; found before anything is made of them.
    """
    raw = list(raw_contents)
    if raw and len(raw) != len(tensors):
        raise FrameError(f"{len(tensors)} tensors and {len(raw)} raw contents: give one for each, or none")
    found: dict[str, Array | list[bytes]] = {}
    for index, tensor in enumerate(tensors):
        shape = tuple(tensor.shape)
        if any(d < 0 for d in shape):
            raise ShapeError(f"{tensor.name!r} has the shape {list(shape)}")
        if math.prod(shape) > max_elements:
            raise FrameTooLargeError(f"{math.prod(shape)} elements in {tensor.name!r}; at most {max_elements}")
        if any(name.startswith("shared_memory") for name in tensor.parameters):
            raise FrameError(f"{tensor.name!r} lies in shared memory; contents alone are taken")
        found[tensor.name] = _from_raw(tensor, shape, raw[index]) if raw else _from_contents(tensor, shape)
    return found


def elements_of(contents: bytes) -> list[bytes]:
    """The elements of a raw BYTES tensor, each with its length before it.

    Raises:
        ShapeError: it ends in the middle of one.
    """
    elements, position = [], 0
    while position < len(contents):
        end = position + _LENGTH_BYTES
        if end > len(contents):
            raise ShapeError("a BYTES tensor ends in the middle of a length")
        (length,) = struct.unpack("<I", contents[position:end])
        if end + length > len(contents):
            raise ShapeError("a BYTES tensor ends in the middle of an element")
        elements.append(contents[end : end + length])
        position = end + length
    return elements


def add_outputs(response: pb.ModelInferResponse, outputs: dict[str, Array], wanted: Sequence[str]) -> None:
    """Put arrays into a response, as raw contents: nothing else is read by Triton's own clients.

    Raises:
        FrameError: an output is asked for that the model does not have.
    """
    unknown = set(wanted) - outputs.keys()
    if unknown:
        raise FrameError(f"no output {', '.join(sorted(unknown))}; there are {', '.join(outputs)}")
    for name in wanted or outputs:
        array = outputs[name]
        response.outputs.add(name=name, datatype=datatype_of(array.dtype.name), shape=array.shape)
        response.raw_output_contents.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


def _from_raw(tensor: OipTensor, shape: tuple[int, ...], raw: bytes) -> Array | list[bytes]:
    if tensor.datatype == BYTES:
        return _filled(tensor.name, shape, elements_of(raw))
    dtype = _dtype(tensor)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise ShapeError(f"{tensor.name!r}: {len(raw)} bytes are no {tensor.datatype} {list(shape)}")
    return np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape).astype(dtype, copy=False)


def _from_contents(tensor: OipTensor, shape: tuple[int, ...]) -> Array | list[bytes]:
    if tensor.datatype not in _CONTENTS:
        raise FrameError(f"{tensor.name!r}: {tensor.datatype} comes as raw contents alone")
    values = list(getattr(tensor.contents, _CONTENTS[tensor.datatype]))
    if tensor.datatype == BYTES:
        return _filled(tensor.name, shape, values)
    if len(values) != math.prod(shape):
        raise ShapeError(f"{tensor.name!r}: {len(values)} values do not fill {list(shape)}")
    try:
        return np.array(values, _dtype(tensor)).reshape(shape)
    except OverflowError:
        raise ShapeError(f"{tensor.name!r}: a value is out of the range of {tensor.datatype}") from None


def _filled(name: str, shape: tuple[int, ...], elements: list[bytes]) -> list[bytes]:
    if len(elements) != math.prod(shape):
        raise ShapeError(f"{name!r}: {len(elements)} elements do not fill {list(shape)}")
    return elements


def _dtype(tensor: OipTensor) -> np.dtype[Any]:
    if tensor.datatype not in _NAMES:
        raise FrameError(f"{tensor.name!r}: element type {tensor.datatype!r} is unknown here")
    return np.dtype(_NAMES[tensor.datatype])
