"""Bytes against top-1 agreement: min-max, clipped per channel, and steps by the output's sensitivity.

    python benchmarks/steps.py [--images 200] [--json]

Agreement is with the uncut model's own answer, so the pictures' labels do not matter. Every ladder is coded by the
same trained context coder. Calibration pictures are never those measured.
"""

from __future__ import annotations

import argparse
import io

import numpy as np
import onnx
import onnxruntime as ort
from codec import NETWORKS, jpegs, material, report
from narrows.partitioner.allocate import allocate, measure
from narrows.partitioner.quantise import Histograms, Quantiser, QuantiserTable, RangeStatistics, solve
from narrows.runtime.codec import SymbolSpec, by_label, train_table
from onnx.utils import Extractor
from PIL import Image

CALIBRATION, PROBED = 96, 24
CUTS = (("mobilenet-v2", "64x14x14"), ("squeezenet", "64x13x13"), ("resnet56", "16x16"), ("resnet20", "8x8"))
LADDER = (3, 4, 5, 6, 8, 12, 16, 24, 32, 64)


def sessions(network, cut):
    """The head and the tail at a cut, as functions over batches of one."""
    model = onnx.shape_inference.infer_shapes(onnx.load(material() / "models" / network.model))
    outputs = [name for node in model.graph.node for name in node.output]
    tensor = next(name for name in reversed(outputs) if name.endswith(network.cuts[cut]))
    known = {v.name for v in model.graph.value_info}
    if tensor not in known:
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    parts = Extractor(model)
    source, target = model.graph.input[0].name, model.graph.output[0].name
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    head, tail = (
        ort.InferenceSession(parts.extract_model([a], [b]).SerializeToString(), options)
        for a, b in ((source, tensor), (tensor, target))
    )

    def run(session, x):
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: x[i : i + 16]})[0] for i in range(0, len(x), 16)])

    return (lambda x: run(head, x)), (lambda x: run(tail, x).reshape(len(x), -1))


def minmax(features) -> QuantiserTable:
    """One range for the whole tensor."""
    low, high = min(float(features.min()), 0.0), float(features.max())
    channels = features.shape[1]
    steps = np.array([[(high - low) / (n - 1)] * channels for n in LADDER], np.float32)
    return QuantiserTable(LADDER, 1, steps, np.floor(-low / steps + 0.5).astype(np.float32))


def clipped(features) -> QuantiserTable:
    """What the partitioner does without sensitivities."""
    ranges = RangeStatistics(1)
    ranges.add(features)
    histograms = Histograms(1, *ranges.bounds())
    histograms.add(features)
    return solve(histograms, Quantiser(levels=LADDER))


def curve(table: QuantiserTable, calibration, features, tail, answers):
    """Rows of bytes, agreement and output deviation, one per quality."""
    wanted = tail(features)
    for q, levels in enumerate(table.levels):
        step, zero = (v[q].reshape(1, -1, 1, 1) for v in (table.steps, table.zeros))

        def symbols(x, step=step, zero=zero, levels=levels):
            return np.clip(np.floor(x / step + zero + 0.5), 0, levels - 1).astype(np.uint8)

        coded = symbols(features)
        spec = SymbolSpec(coded.shape[1:], coded.dtype, levels, 0)
        bound = by_label("context/1").bind(spec, train_table(spec, symbols(calibration)))
        outputs = tail(((coded - zero) * step).astype(np.float32))
        yield {
            "bytes": float(np.mean([len(bound.encode(frame)) for frame in coded])),
            "agreement": float((outputs.argmax(1) == answers).mean()),
            "deviation": float(((outputs - wanted) ** 2).mean() / wanted.var(axis=0).mean()),
        }


def bytes_at(points, key: str, wanted: float) -> float:
    """Bytes where a curve reaches `wanted`, log-linear between its points (the lower envelope of a noisy measure)."""
    ordered = sorted(points, key=lambda p: p["bytes"])
    sign = 1 if key == "agreement" else -1
    for before, after in zip([None, *ordered], ordered, strict=False):
        if sign * after[key] >= sign * wanted:
            if before is None or after[key] == before[key]:
                return after["bytes"]
            share = (wanted - before[key]) / (after[key] - before[key])
            return float(np.exp((1 - share) * np.log(before["bytes"]) + share * np.log(after["bytes"])))
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--cuts", default="", help="parts of the cuts' names, comma-separated; all of them by default")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows, curves = [], []
    for name, cut in CUTS:
        if not any(part in f"{name} {cut}" for part in args.cuts.split(",")):
            continue
        network = next(n for n in NETWORKS if n.name == name)
        head, tail = sessions(network, cut)
        pictures = jpegs(network.pack, network.split, CALIBRATION + args.images)
        x = np.stack([network.feed(Image.open(io.BytesIO(p)).convert("RGB")) for p in pictures]).astype(np.float32)
        # Spread over the pack: every class is in both parts.
        order = np.random.default_rng(0).permutation(len(x))
        features = head(x[order])
        calibration, features = features[:CALIBRATION], features[CALIBRATION:]
        answers = tail(features).argmax(1)
        tables = {
            "min-max": minmax(calibration),
            "clipped": clipped(calibration),
            "sensitivity": allocate(measure(calibration, calibration[:PROBED], tail)),
        }
        points = {k: list(curve(t, calibration, features, tail, answers)) for k, t in tables.items()}
        for kind, ladder in points.items():
            curves += [{"cut": f"{name} {cut}", "steps": kind} | point for point in ladder]
        for key, aims in (("agreement", (0.9, 0.95, 0.97)), ("deviation", (0.1, 0.03))):
            for aim in aims:
                sizes = {kind: bytes_at(ladder, key, aim) for kind, ladder in points.items()}
                saved = {f"{k} saves %": 100 * (1 - sizes[k] / sizes["min-max"]) for k in ("clipped", "sensitivity")}
                rows.append({"cut": f"{name} {cut}", "at": f"{key} {aim}"} | sizes | saved)
    note = f"{args.images} pictures, bytes of the trained context coder"
    if args.json:
        report("steps", rows + curves, as_json=True, note=note)
        return
    report("every point", curves, as_json=False)
    report("bytes at equal quality of the output", rows, as_json=False, note=note)


if __name__ == "__main__":
    main()
