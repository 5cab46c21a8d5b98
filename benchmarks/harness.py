"""What the benchmarks share: where the material is, how processes are started, how results are printed."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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


def write_pictures(folder: Path, pictures: Iterator[bytes]) -> list[Path]:
    """Write JPEG files into a folder, named in order; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, data in enumerate(pictures):
        paths.append(folder / f"{i:05d}.jpg")
        paths[-1].write_bytes(data)
    return paths


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
