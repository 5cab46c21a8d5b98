"""Graphs beside a student's own: further tails for the server, and the device's early exit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from ...runtime.bundle import BundleWriter
from ...runtime.manifest import Cut, Exit, FurtherTail, Half, OutputSpec, TensorSpec
from ..runner import Runner
from .data import Part
from .exits import calibrated
from .graphs import graph_from_symbols
from .heads import Task, restored_symbols
from .measures import HeldOut
from .run import Trained

Array = NDArray[Any]

_BATCH = 256


class FurtherGraphs:
    """Writes them into a bundle whose cut is there already."""

    def __init__(self, trained: Trained, cut: Cut, writer: BundleWriter, validation: Part) -> None:
        self.trained, self.cut, self.writer, self.validation = trained, cut, writer, validation
        with np.load(writer.root / cut.golden_tail) as golden:
            self.golden = {key: golden[key] for key in golden.files if key.startswith("symbols/")}

    def tail(self, task: Task) -> tuple[FurtherTail, HeldOut]:
        """A further tail's graph and its golden answers, and how good it is; `task.module` is trained."""
        output = f"{task.name}.output"
        proto = self._graph(task.deployed, output)
        file, golden = f"tails/{task.name}.onnx", f"golden/tail-{task.name}.npz"
        self.writer.add(file, Half.SERVER).write_bytes(proto.SerializeToString())
        answers = self._answers(proto, output)
        np.savez_compressed(
            self.writer.add(golden, Half.SERVER),
            allow_pickle=False,
            **{f"output/{q}/0": answer for q, answer in enumerate(answers)},
        )
        spec = TensorSpec(output, str(answers[0].dtype), answers[0].shape)
        outputs = (OutputSpec(spec, "logits" if task.classifies else "tensor"),)
        return FurtherTail(file, outputs, golden, task.labels), self._held_out(task, proto, output)

    def exit(self, module: nn.Module, output: str) -> Exit:
        """The exit's graph, its golden answers, and how sure of itself it may be at every quality."""
        proto = self._graph(module, output)
        self.writer.add("exit.onnx", Half.DEVICE).write_bytes(proto.SerializeToString())
        arrays = {}
        for q, answer in enumerate(self._answers(proto, output)):
            arrays[f"input/{q}/0"], arrays[f"output/{q}/0"] = self.golden[f"symbols/{q}/0"], answer
        golden = "golden/exit.npz"
        np.savez_compressed(self.writer.add(golden, Half.DEVICE), allow_pickle=False, **arrays)
        teacher = self._teacher()
        qualities = tuple(
            calibrated(self._logits(module, q), teacher, self.validation.labels) for q in range(len(self.cut.qualities))
        )
        return Exit("exit.onnx", (output,), golden, qualities)

    def _held_out(self, task: Task, proto: onnx.ModelProto, output: str) -> HeldOut:
        """The deployed graph's answers to held-out pictures, measured at every quality."""
        runner, part = Runner(proto), task.validation
        measures = [task.measured() for _ in self.cut.qualities]
        for start in range(0, len(part), _BATCH):
            pictures = torch.from_numpy(np.ascontiguousarray(part.pictures[start : start + _BATCH]))
            wanted = task.wanted(pictures, torch.from_numpy(np.ascontiguousarray(part.labels[start : start + _BATCH])))
            for q, measure in enumerate(measures):
                quality = torch.full((len(pictures),), q)
                symbols = self.trained.student.symbols(self.trained.teacher.normalised(pictures), quality)
                feed = {
                    self.cut.crossing[0].symbols.name: symbols.numpy(),
                    self.cut.quality_input or "quality": quality.numpy().astype(np.int32),
                }
                measure.add(runner(feed)[output], wanted.numpy())
        return HeldOut(measures[0].name, tuple(measure.value for measure in measures))

    def _graph(self, module: nn.Module, output: str) -> onnx.ModelProto:
        shape = [dim or 1 for dim in self.cut.crossing[0].symbols.shape]
        return graph_from_symbols(
            module.cpu(),
            torch.zeros(2, *shape),
            self.trained.student.quantiser.table(),
            symbols=self.cut.crossing[0].symbols.name,
            quality=self.cut.quality_input or "quality",
            output=output,
        )

    def _answers(self, proto: onnx.ModelProto, output: str) -> list[Array]:
        """Of the golden frame, at every quality, without a batch axis."""
        runner = Runner(proto)
        feeds = [
            {
                self.cut.crossing[0].symbols.name: self.golden[f"symbols/{q}/0"][None],
                self.cut.quality_input or "quality": np.array([q], np.int32),
            }
            for q in range(len(self.cut.qualities))
        ]
        return [runner(feed)[output][0] for feed in feeds]

    @torch.no_grad()
    def _logits(self, module: nn.Module, quality: int) -> NDArray[np.float64]:
        made = [module(restored_symbols(self.trained, rows, quality)).double().numpy() for rows in self._pictures()]
        return np.concatenate(made)

    @torch.no_grad()
    def _teacher(self) -> NDArray[np.int64]:
        teacher = self.trained.teacher
        return np.concatenate([teacher.module(teacher.normalised(rows)).argmax(1).numpy() for rows in self._pictures()])

    def _pictures(self) -> list[torch.Tensor]:
        pictures = self.validation.pictures
        starts = range(0, len(pictures), _BATCH)
        return [torch.from_numpy(np.ascontiguousarray(pictures[s : s + _BATCH])) for s in starts]
