"""Bytes against accuracy: pictures sent, cuts as they are, and bottlenecks that were trained in.

    python benchmarks/rate_accuracy.py [flowers] [cifar10] [--train] [--seeds 1] [--json] [--png FOLDER]

Every method answers the same test pictures; bytes are those of files and of coded symbols, and of the frames they
travel in. Students are bundles: their heads and tails run in ONNX Runtime, and frames go through the deployed coder.
Baselines are measured once and kept in the cache; students are trained with `--train`, each kept in the cache, too
(`--only NAME` for one of them).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import compressai_prior
import numpy as np
from harness import material, report
from narrows.partitioner.torch_source import export as export_onnx
from narrows.partitioner.training.curves import RateCurve, RatePoint, plot_rate_accuracy
from narrows.partitioner.training.data import Part
from narrows.runtime.bundle import Bundle
from narrows.runtime.codec import labels
from narrows.runtime.frame import frame_codecs
from narrows.runtime.halves import Head, Tail
from narrows.runtime.link import wire_bytes
from narrows.runtime.session import open_session
from narrows.runtime.wire import frame_to_wire
from pictures_sent import Answer, Point, at_accuracy, naive, original, reencoded
from teachers import CIFAR, FLOWERS, MEAN, STD, cache_folder, flowers, pack

ALLOWED_POINTS = 0.6
"""Under the teacher's accuracy, in points: where methods are compared."""
PICTURES = ("original JPEG", "JPEG", "WEBP")
OTHER_CODER = ", CompressAI's prior"


@dataclass(frozen=True)
class Subject:
    """A teacher, its pictures, and what is tried on them."""

    name: str
    pack: str
    sides: tuple[int, ...]
    """Pixels a side that pictures are sent with."""
    cuts: tuple[str, ...]
    """Tensors of the teacher's graph for the naive cuts: the best-ranked one when empty."""
    model: Callable[[], Path]
    """The teacher's ONNX file."""


@cache
def _flowers_onnx() -> Path:
    """The flowers' teacher as ONNX, made when it is first wanted."""
    folder = cache_folder() / "flowers-onnx"
    if not (folder / "model.onnx").exists():
        made = export_onnx(flowers(), "flowers")
        shutil.copytree(made.folder, folder, dirs_exist_ok=True)
    return folder / "model.onnx"


SUBJECTS = {
    "flowers": Subject(
        "flowers", FLOWERS, (144, 112, 96, 80, 64), ("getitem_33", "getitem_60", "getitem_123"), _flowers_onnx
    ),
    "cifar10": Subject(
        "cifar10",
        CIFAR,
        (32,),
        ("/layer2/layer2.0/Relu_1_output_0", "/layer3/layer3.0/Relu_1_output_0"),
        lambda: material() / "models" / "cifar10_resnet20_jpegft.onnx",
    ),
}


def whole(model: Path) -> Answer:
    """The teacher in ONNX Runtime."""
    session = open_session(model)
    name = session.get_inputs()[0].name
    mean, std = np.float32(MEAN), np.float32(STD)

    def answer(pictures: np.ndarray) -> np.ndarray:
        x = ((pictures.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        return session.run(None, {name: np.ascontiguousarray(x)})[0]

    return answer


# -- baselines ---------------------------------------------------------------------------------------------------------


def baselines(subject: Subject) -> list[Point]:
    """Measured once, each point kept as soon as it is there."""
    path = cache_folder() / "rate_accuracy" / f"{subject.name}-baselines.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [Point(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(point.method, point.setting) for point in known}
    with path.open("a") as stream:
        for point in _measured(subject, done):
            known.append(replace(point, subject=subject.name))
            stream.write(json.dumps(asdict(known[-1])) + "\n")
            stream.flush()
    return known


def _measured(subject: Subject, done: set[tuple[str, str]]) -> Iterator[Point]:
    pictures, model = pack(subject.pack, "test"), subject.model()
    answer = whole(model)
    if ("original JPEG", "") not in done:
        yield original(pictures, answer)
    for kind in ("JPEG", "WEBP"):
        yield from reencoded(pictures, answer, kind, subject.sides, done)
    yield from naive(pictures, pack(subject.pack, "train").part, model, subject.cuts, done)


# -- students ----------------------------------------------------------------------------------------------------------


def students(subject: Subject, seeds: int, only: str, *, train: bool) -> Iterator[Point]:
    """The points of every student that is in the cache, and of those that are to be trained now."""
    from students import RECIPES, bundle_of, folder_of, student

    for name, recipe in RECIPES.items():
        for seed in range(seeds):
            wanted = recipe.subject == subject.name and only in name
            if wanted and (train or bundle_of(name, seed).exists()):
                bundle, kept = student(name, seed), folder_of(name, seed) / "points.json"
                yield from measured_student(recipe.method, bundle, kept, subject, seed)


def measured_student(method: str, bundle: Path, path: Path, subject: Subject, seed: int) -> list[Point]:
    """A student's points: measured once, and kept beside its bundle."""
    if path.exists():
        return [Point(**one) for one in json.loads(path.read_text())]
    print(f"measuring {bundle.name}, seed {seed}", file=sys.stderr, flush=True)
    points = list(student_points(method, bundle, pack(subject.pack, "test").part, subject.name, seed))
    if compressai_prior.available():
        points += compressai_points(method, bundle, subject, tuple(points))
    path.write_text(json.dumps([asdict(point) for point in points]))
    return points


def student_points(method: str, root: Path, part: Part, subject: str, seed: int = 0) -> Iterator[Point]:
    """One point per quality of a bundle, through the deployed graphs and the deployed coder."""
    bundle = Bundle.open(root)
    cut = bundle.manifest.cuts[0]
    head, tail, codec = Head(bundle, cut), Tail(bundle, cut), frame_codecs(bundle)[0]
    for quality in range(len(cut.qualities)):
        right, payload, wire = 0, [], []
        for i, (picture, label) in enumerate(zip(part.pictures, part.labels, strict=True)):
            frame = codec.pack(i, head.run([picture], quality).symbols, quality, labels()[0])
            payload.append(frame.payload_bytes)
            wire.append(wire_bytes(frame_to_wire(frame).ByteSize()))
            scores = tail.run([codec.unpack(frame)], [quality])[0]
            right += int(scores[bundle.manifest.outputs[0].tensor.name].argmax() == label)
        setting = root.name + (f", quality {quality}" if len(cut.qualities) > 1 else "")
        yield Point(method, setting, float(np.mean(payload)), float(np.mean(wire)), right / len(part), seed, subject)


def compressai_points(method: str, root: Path, subject: Subject, points: Sequence[Point]) -> Iterator[Point]:
    """The same students, their symbols coded by CompressAI's factorised prior: one point per quality."""
    bundle = Bundle.open(root)
    cut = bundle.manifest.cuts[0]
    head = Head(bundle, cut)
    training, test = pack(subject.pack, "train").part, pack(subject.pack, "test").part
    for quality, point in enumerate(points):
        seen, coded = (
            np.stack([head.run([picture], quality).symbols[0] for picture in some])
            for some in (training.pictures[:: len(training) // 512], test.pictures[:: max(1, len(test) // 800)])
        )
        payload = compressai_prior.payload_bytes(seen, coded, cut.crossing[0].levels[quality] // 2)
        wire = point.wire_bytes - point.payload_bytes + payload
        yield replace(point, method=method + OTHER_CODER, payload_bytes=payload, wire_bytes=wire)


# -- what is shown -----------------------------------------------------------------------------------------------------


def summary(points: Sequence[Point], subject: str) -> list[dict[str, Any]]:
    """For each method, the fewest bytes at the accuracy asked for, and how many fewer than the best picture's."""
    mine = [p for p in points if p.subject == subject]
    teacher = next(p.accuracy for p in mine if p.method == "original JPEG")
    wanted = teacher - ALLOWED_POINTS / 100
    pictures = [p for p in mine if p.method in PICTURES]
    rows = []
    for method in dict.fromkeys(p.method for p in mine):
        by_seed = defaultdict(list)
        for p in mine:
            if p.method == method:
                by_seed[p.seed].append(p)
        row: dict[str, Any] = {"subject": subject, "method": method, "seeds": len(by_seed)}
        for key, name in (("payload_bytes", "bytes"), ("wire_bytes", "on the wire")):
            reached = [at_accuracy(own, wanted, key) for own in by_seed.values()]
            best_picture = at_accuracy(pictures, wanted, key)
            if None in reached:
                row |= {name: "–", f"{name}, fewer": "–"}
                continue
            mean = float(np.mean([r for r in reached if r is not None]))
            row[name] = f"{mean:,.0f}" + (f" ± {np.std(reached, ddof=1):,.0f}" if len(reached) > 1 else "")
            row[f"{name}, fewer"] = f"{100 * (1 - mean / best_picture):.1f} %" if best_picture else "–"
        row["best accuracy"] = f"{100 * np.mean([max(p.accuracy for p in own) for own in by_seed.values()]):.2f}"
        rows.append(row)
    return rows


def main_points(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Every point of the students, mean and spread over seeds, beside the best picture that is as accurate."""
    groups: dict[tuple[str, str, str], list[Point]] = defaultdict(list)
    for point in points:
        if point.method not in (*PICTURES, "naive cut"):
            groups[point.subject, point.method, point.setting].append(point)
    rows = []
    for (subject, method, setting), own in groups.items():
        pictures = [p for p in points if p.subject == subject and p.method in PICTURES]
        teacher = next(p.accuracy for p in pictures if p.method == "original JPEG")
        as_good = [at_accuracy(pictures, p.accuracy) for p in own]
        fewer = [100 * (1 - p.payload_bytes / b) for p, b in zip(own, as_good, strict=True) if b is not None]
        rows.append(
            {
                "subject": subject,
                "method": method,
                "point": setting,
                "seeds": len(own),
                "bytes": _mean_and_spread([p.payload_bytes for p in own], 1),
                "on the wire": _mean_and_spread([p.wire_bytes for p in own], 1),
                "accuracy": _mean_and_spread([100 * p.accuracy for p in own], 2),
                "to the teacher": f"{100 * (np.mean([p.accuracy for p in own]) - teacher):+.2f}",
                "fewer than a picture": f"{np.mean(fewer):.1f} %" if len(fewer) == len(own) else "–",
            }
        )
    return rows


def _mean_and_spread(values: Sequence[float], digits: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def draw(points: Sequence[Point], subject: str, path: Path) -> None:
    """The plot of one subject; what another coder would take of the same symbols is in the tables alone."""
    mine = [p for p in points if p.subject == subject and not p.method.endswith(OTHER_CODER)]
    teacher = next(p.accuracy for p in mine if p.method == "original JPEG")
    curves = []
    for method in dict.fromkeys(p.method for p in mine):
        groups = defaultdict(list)
        for p in mine:
            if p.method == method:
                groups[p.setting].append(p)
        drawn = tuple(
            RatePoint(
                float(np.mean([p.payload_bytes for p in own])),
                float(np.mean([p.accuracy for p in own])),
                float(np.std([p.accuracy for p in own], ddof=1)) if len(own) > 1 else 0.0,
            )
            for own in groups.values()
        )
        connected = method not in (*PICTURES, "naive cut")
        curves.append(RateCurve(method, drawn if connected else _staircase(drawn), connected=True))
    plot_rate_accuracy(path, curves, title=f"{subject}: what an answer costs on the link", teacher=teacher)


def _staircase(points: Sequence[RatePoint]) -> tuple[RatePoint, ...]:
    """The points that no other beats in both bytes and accuracy."""
    best: list[RatePoint] = []
    for point in sorted(points, key=lambda p: p.bytes):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return tuple(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []], help="what to measure; flowers by default")
    parser.add_argument("--train", action="store_true", help="train what is not in the cache yet: an hour and more")
    parser.add_argument("--seeds", type=int, default=1, help="students of each kind")
    parser.add_argument("--only", default="", help="part of the names of the students that are meant")
    parser.add_argument("--png", type=Path, help="folder for the plots")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    points: list[Point] = []
    rows: list[dict[str, Any]] = []
    for name in args.subjects or ["flowers"]:
        subject = SUBJECTS[name]
        points += baselines(subject)
        points += students(subject, args.seeds, args.only, train=args.train)
        rows += summary(points, name)
        if args.png is not None:
            args.png.mkdir(parents=True, exist_ok=True)
            draw(points, name, args.png / f"rate-accuracy-{name}.png")
    note = f"bytes at {ALLOWED_POINTS} points under the teacher; fewer than the best of {', '.join(PICTURES)}"
    if args.json:
        report("Rate and accuracy", [*rows, *map(asdict, points)], as_json=True, note=note)
        return
    if students_points := main_points(points):
        report("Students, every point", students_points, as_json=False)
    report("Bytes for an answer", rows, as_json=False, note=note)


if __name__ == "__main__":
    main()
