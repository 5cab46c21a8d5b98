"""Does the split answer as the whole model does?

    python benchmarks/agreement.py [--pictures 200] [--json]

Each model is cut in the first half of its graph, once with the quantiser and once without; a server process runs
both tails, and `narrows run` streams the pictures from a process of its own. The whole model runs in ONNX Runtime on
the same pixels, normalised by NumPy, so that the preprocessing in the head's graph is tested along with the cut.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
from narrows.runtime.bundle import Bundle
from narrows.runtime.images import fit, load_image
from narrows.runtime.manifest import Preprocess
from narrows.runtime.session import open_session


def normalise(picture: np.ndarray[Any, Any], preprocess: Preprocess) -> np.ndarray[Any, Any]:
    """What the whole model takes: `float32` `[3, height, width]`, or the picture itself where it takes bytes."""
    if preprocess.layout == "nhwc":
        return picture
    channels = picture[..., ::-1] if preprocess.order == "bgr" else picture
    scaled = channels.astype(np.float32) * np.float32(preprocess.scale)
    return ((scaled - np.float32(preprocess.mean)) / np.float32(preprocess.std)).transpose(2, 0, 1)


def whole(subject: harness.Subject, bundle: Bundle, pictures: list[Path]) -> np.ndarray[Any, Any]:
    """The uncut model's outputs, one row a picture."""
    preprocess = bundle.manifest.preprocess
    assert preprocess is not None
    session = open_session(subject.path)
    name = session.get_inputs()[0].name
    rows = [normalise(fit(load_image(path), preprocess), preprocess) for path in pictures]
    return np.stack([session.run(None, {name: row[None]})[0].reshape(-1) for row in rows])


def split(bundle: Bundle, address: str, pictures: Path, folder: Path) -> tuple[np.ndarray[Any, Any], dict[str, float]]:
    """The split's outputs from a device process, and the mean bytes of a frame."""
    outputs = folder / "outputs" / bundle.manifest.name
    command = [sys.executable, "-m", "narrows", "run", str(bundle.root), "--server", address, "--input", str(pictures)]
    done = subprocess.run(
        [*command, "--json", "--save-outputs", str(outputs)], check=True, stdout=subprocess.PIPE, text=True
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(line["outcome"] == "ok" for line in said)
    rows = []
    for path in sorted(outputs.iterdir()):
        with np.load(path) as arrays:
            rows.append(arrays[bundle.manifest.outputs[0].tensor.name].reshape(-1))
    sizes = {key: float(np.mean([line[key] for line in said])) for key in ("payload_bytes", "wire_bytes")}
    return np.stack(rows), sizes


def compare(subject: harness.Subject, folder: Path, count: int) -> dict[str, Any]:
    """One row of the table."""
    quantised, plain = subject.cut(folder), subject.cut(folder, quantise=False)
    pictures = folder / "pictures" / subject.name
    expected = whole(subject, quantised, subject.write_pictures(pictures, count))
    with harness.server(folder / "bundles") as address:
        answers, sizes = split(quantised, address, pictures, folder)
        same, plain_sizes = split(plain, address, pictures, folder)
    cut = quantised.manifest.cuts[0]
    scale = float(np.abs(expected).max())
    return {
        "model": subject.name,
        "cut": f"{cut.name} {'×'.join(map(str, cut.crossing[0].symbols.shape))}",
        "pictures": len(expected),
        "same top-1, 8 bits": round(float(np.mean(answers.argmax(1) == expected.argmax(1))), 4),
        "wire bytes, 8 bits": round(sizes["wire_bytes"]),
        "wire bytes, float": round(plain_sizes["wire_bytes"]),
        "max |Δ| / max, 8 bits": float(np.abs(answers - expected).max() / scale),
        "max |Δ| / max, float": float(np.abs(same - expected).max() / scale),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="pictures per model")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(subject, Path(folder), options.pictures) for subject in harness.SUBJECTS]
    harness.report("The split beside the whole model", rows, as_json=options.json)


if __name__ == "__main__":
    main()
