"""The bundles of `bundles.py` with their whole model added, for both halves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
from narrows.runtime.bundle import Bundle, BundleWriter
from narrows.runtime.manifest import Half


def with_whole(bundle: Bundle, target: Path) -> Bundle:
    """A copy of a bundle that carries the uncut model, without the quantiser between."""
    head, tail = onnx.load(bundle.file("head.onnx")), onnx.load(bundle.file("tail.onnx"))
    before = head.graph.node[: 1 + next(i for i, n in enumerate(head.graph.node) if "features" in n.output)]
    after = tail.graph.node[1 + next(i for i, n in enumerate(tail.graph.node) if "features" in n.output) :]
    used = {name for node in (*before, *after) for name in node.input}
    weights = [w for w in (*head.graph.initializer, *tail.graph.initializer) if w.name in used]
    graph = onnx.helper.make_graph([*before, *after], "whole", [head.graph.input[0]], tail.graph.output, weights)
    whole = onnx.helper.make_model(graph, opset_imports=head.opset_import, ir_version=head.ir_version)
    onnx.checker.check_model(whole)
    with BundleWriter(target) as writer:
        for name, entry in bundle.manifest.files.items():
            shutil.copy(bundle.file(name), writer.add(name, *entry.halves))
        onnx.save(whole, writer.add("local.onnx", *Half))
        return writer.finish(replace(bundle.manifest, local="local.onnx"))
