"""Graphs on disk, with weights that are copied from file to file and never all in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import TensorProto

from ..runtime.errors import ExternalDataError

INLINE_BYTES = 1 << 30
"""Weights of a graph above this go into a file beside it: one protobuf message ends at 2 GiB."""
_SMALL_BYTES = 1024
"""A tensor below this stays in the graph, so that shapes can be read without another file."""
_ALIGN = 4096
"""Tensors start at pages, so that a runtime can map them."""
_CHUNK_BYTES = 1 << 20


def external_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the weights that lie in other files."""
    return sum(place(tensor)[2] or 0 for tensor in tensors(proto.graph) if is_external(tensor))


def tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Every tensor of a graph that could be stored outside: initializers and constants, those of subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                for inner in (attribute.g, *attribute.graphs):
                    yield from tensors(inner)


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's bytes lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def write(proto: onnx.ModelProto, folder: Path | None, path: Path) -> Path | None:
    """Write a model; large weights go to `<path>.data`.

    Args:
        proto: the model. It is left as it is.
        folder: where its external data lies now.
        path: the file to write.

    Returns:
        The data file, where one was needed.

    Raises:
        ExternalDataError: the external data cannot be read.
    """
    if not external_bytes(proto) and proto.ByteSize() <= INLINE_BYTES:
        path.write_bytes(proto.SerializeToString())
        return None
    data = path.with_name(path.name + ".data")
    placed = onnx.ModelProto()
    placed.CopyFrom(proto)
    with data.open("wb") as target:
        for tensor in tensors(placed.graph):
            if is_external(tensor):
                _copy(tensor, folder, target, data.name)
            elif len(tensor.raw_data) > _SMALL_BYTES:
                offset = _aligned(target)
                target.write(tensor.raw_data)
                _point(tensor, data.name, offset, len(tensor.raw_data))
    path.write_bytes(placed.SerializeToString())
    return data


def model_digest(proto: onnx.ModelProto, folder: Path | None) -> str:
    """sha256 of a model, its external data included.

    Raises:
        ExternalDataError: that cannot be read.
    """
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
    files = sorted({place(tensor)[0] for tensor in tensors(proto.graph) if is_external(tensor)})
    for name in files:
        try:
            with ((folder or Path()) / name).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise ExternalDataError(f"the external data in {name!r} cannot be read ({error})") from None
    return digest.hexdigest()


def place(tensor: TensorProto) -> tuple[str, int, int | None]:
    """File, offset and length of a tensor's external data.

    Raises:
        ExternalDataError: it is not said in full.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        length = int(entries["length"]) if "length" in entries else None
        return entries["location"], int(entries.get("offset", 0)), length
    except (KeyError, ValueError):
        raise ExternalDataError(f"{tensor.name!r}: its external data is not said in full ({entries})") from None


def _copy(tensor: TensorProto, folder: Path | None, target: BinaryIO, name: str) -> None:
    """Append a tensor's bytes to `target` in pieces."""
    location, offset, length = place(tensor)
    source_path = (folder or Path()) / location
    start = _aligned(target)
    written = 0
    try:
        with source_path.open("rb") as source:
            source.seek(offset)
            while length is None or written < length:
                piece = source.read(_CHUNK_BYTES if length is None else min(_CHUNK_BYTES, length - written))
                if not piece:
                    break
                written += target.write(piece)
    except OSError as error:
        raise ExternalDataError(
            f"{tensor.name!r}: its external data in {location!r} cannot be read ({error})"
        ) from None
    if length is not None and written != length:
        raise ExternalDataError(f"{tensor.name!r}: {location!r} ends {length - written} bytes too soon")
    _point(tensor, name, start, written)


def _aligned(target: BinaryIO) -> int:
    position: int = target.seek(0, os.SEEK_END)
    padding = -position % _ALIGN
    target.write(b"\0" * padding)
    return position + padding


def _point(tensor: TensorProto, name: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
