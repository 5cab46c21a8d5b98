"""What the benchmarks share: where the material is, how processes are started, how results are printed."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from narrows.device import open_source
from narrows.partitioner import CutPoint, Quantiser, cut_model, list_cuts
from narrows.runtime.bundle import Bundle
from narrows.server_process import server_process
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


def material() -> Path:
    """The folder with real models and data; ends the script where it is not there."""
    given = os.environ.get("NARROWS_MATERIAL")
    folder = Path(given) if given else ROOT.parent / "shared"
    if not (folder / "models").is_dir():
        sys.exit(f"this benchmark needs models and data in {folder}: see benchmarks/README.md, or set NARROWS_MATERIAL")
    return folder


def jpegs(pack: str, split: str = "", count: int | None = None) -> Iterator[bytes]:
    """JPEG files of a pack, evenly spread over it.

    Args:
        pack: file name in the material's `data/`.
        split: "", "_train" or "_test".
        count: how many; all of them when None.
    """
    with np.load(material() / "data" / pack) as data:
        blob, offsets = data[f"jpeg{split}"].tobytes(), data[f"off{split}"]
    total = len(offsets) - 1
    rows = range(total) if count is None else np.linspace(0, total - 1, count).astype(int)
    return (blob[offsets[i] : offsets[i + 1]] for i in rows)


@dataclass(frozen=True)
class Subject:
    """A pre-trained classifier and pictures of its kind."""

    name: str
    model: str
    """File name in the material's `models/`."""
    preprocess: str
    pack: str
    split: str = ""
    at: str | None = None
    """Where to cut; the best-ranked tensor of the first half by default."""

    @property
    def path(self) -> Path:
        return material() / "models" / self.model

    def write_pictures(self, folder: Path, count: int) -> list[Path]:
        """Write `count` pictures, evenly spread over the pack, as JPEG files; their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for i, data in enumerate(jpegs(self.pack, self.split, count)):
            paths.append(folder / f"{i:05d}.jpg")
            paths[-1].write_bytes(data)
        return paths

    def cut_in_first_half(self) -> CutPoint:
        """The best-ranked single tensor no deeper than half of the graph."""
        cuts = [cut for cut in list_cuts(str(self.path)) if len(cut.tensors) == 1]
        deepest = max(cut.depth for cut in cuts)
        return next(cut for cut in cuts if cut.depth <= deepest / 2)

    def cut(self, folder: Path, *, calibration: int = 64, quantise: bool = True) -> Bundle:
        """Cut the model into `folder/bundles/NAME`, calibrated on pictures of its pack."""
        pictures = folder / "calibration" / self.name
        if not pictures.exists():
            self.write_pictures(pictures, calibration)
        return cut_model(
            str(self.path),
            self.at or self.cut_in_first_half().name,
            calibrate=pictures,
            preprocess=self.preprocess,
            output=folder / "bundles" / (self.name if quantise else f"{self.name}-float"),
            quantiser=Quantiser() if quantise else None,
        )


_IMAGENET_BGR = "size=227,order=bgr,mean=104/117/123,std=1/1/1,scale=1,layout=nchw"
_CIFAR = "size=32,scale=0.00392156862745098,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
SUBJECTS = (
    Subject("mobilenet-v2", "mobilenet_v2_torchvision_dequant_fp32.onnx", "imagenet", "imagenet500_256q90.npz"),
    Subject(
        "mobilenet-v2-qdq",
        "mobilenet_v2_1.0_224_tf_qdq_u8.onnx",
        "size=224,crop=0.875,layout=nhwc",
        "imagenet500_256q90.npz",
    ),
    Subject("squeezenet", "squeezenet_v1.0_deepcompression_fp32.onnx", _IMAGENET_BGR, "imagenet500_256q90.npz"),
    Subject(
        "squeezenet-fire5",
        "squeezenet_v1.0_deepcompression_fp32.onnx",
        _IMAGENET_BGR,
        "imagenet500_256q90.npz",
        at="fire5_relu_conv1x1_1_out",
    ),
    Subject("resnet20-cifar10", "cifar10_resnet20_jpegft.onnx", _CIFAR, "cifar10_jpeg.npz", "_test"),
    Subject("resnet56-cifar10", "cifar10_resnet56_jpegft.onnx", _CIFAR, "cifar10_jpeg.npz", "_test"),
)


def cut_with_inputs(subject: Subject, folder: Path, count: int) -> tuple[Bundle, list[Any]]:
    """A subject's bundle, and as many of its pictures as its head takes them; both are written into the folder."""
    bundle = subject.cut(folder)
    subject.write_pictures(folder / "pictures", count)
    return bundle, [item.arrays[0] for item in open_source(folder / "pictures", bundle.manifest)]


@contextmanager
def server(bundles: Path) -> Iterator[str]:
    """The address of a server process on this machine."""
    with server_process(bundles) as served:
        yield served.address


def machine() -> str:
    """What this ran on, in a line."""
    import onnxruntime

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return (
        f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, ONNX Runtime {onnxruntime.__version__}"
    )


def report(title: str, rows: Sequence[dict[str, Any]], *, as_json: bool, note: str = "") -> None:
    """Print rows as a table, or everything as one JSON object."""
    if as_json:
        print(json.dumps({"title": title, "machine": machine(), "note": note, "rows": rows}, indent=1))
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console = Console(highlight=False, width=160)
    console.print(table)
    console.print(f"{note}\n{machine()}".strip())
