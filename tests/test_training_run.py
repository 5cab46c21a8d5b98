"""From a teacher and data to a bundle that a real server answers with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import students
import torch
from narrows.device import Device
from narrows.partitioner.training import Pair, Report, Task, Trained, TrainOptions, run_recipe, train, train_task
from narrows.partitioner.training.heads import classifier, restored_symbols
from narrows.partitioner.training.record import Silent
from narrows.runtime.errors import UsageError
from narrows.runtime.session import open_session
from processes import narrows, server_process
from torch import nn

HERE = Path(__file__).parent
DATA = students.some(800, 300)
LADDER = replace(students.QUICK, method="ladder", target_bytes=(15.0, 40.0), epochs=(5, 5), exit=True)


def parity(trained: Trained) -> Task:
    """Odd or even, from the same symbols: what `--tail parity=test_training_run:parity` takes."""
    parts = (DATA.train, DATA.validation)
    train, validation = (replace(part, labels=part.labels % 2) for part in parts)
    module = classifier(trained, 2)
    return Task("parity", module, train, validation, nn.functional.cross_entropy, labels=("even", "odd"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Report, Path]]:
    """A ladder with two further tails and an exit."""
    sys.path.append(str(HERE))
    folder = tmp_path_factory.mktemp("runs") / "digits"
    ink = folder.parent / "ink.npz"
    parts = {"": DATA.train, "_val": DATA.validation}
    masks = {f"y{which}": (part.pictures[..., 0] > 100).astype(np.uint8) for which, part in parts.items()}
    np.savez(ink, classes=["paper", "ink"], **{f"x{which}": part.pictures for which, part in parts.items()}, **masks)
    tails = ("parity=test_training_run:parity", "picture=reconstruct", f"where=segment:{ink}")
    threads = torch.get_num_threads()
    report = run_recipe(
        students.teacher(),
        DATA,
        LADDER,
        output=folder,
        at="middle",
        tails=tails,
        progress=lambda *_: None,
    )
    yield report, folder
    torch.set_num_threads(threads)
    sys.path.remove(str(HERE))


def test_every_quality_says_what_it_costs_and_how_often_it_is_right(made: tuple[Report, Path]) -> None:
    report, _ = made
    manifest = report.bundle.manifest
    small, large = manifest.cuts[0].qualities
    assert manifest.accuracy is not None
    assert manifest.accuracy > 0.8
    assert small.payload_bytes < large.payload_bytes < 60
    assert small.accuracy is not None
    assert large.accuracy is not None
    assert large.accuracy > manifest.accuracy - 0.15
    assert large.agreement is not None
    assert manifest.labels == DATA.classes


def test_the_graphs_make_the_symbols_that_were_trained(made: tuple[Report, Path]) -> None:
    report, _ = made
    assert report.symbols == len(DATA.validation) * 4 * 6 * 6 * 2
    assert report.differing <= 1e-5 * report.symbols


def test_the_run_leaves_numbers_curves_and_a_plot(made: tuple[Report, Path]) -> None:
    report, folder = made
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [q["accuracy"] for q in metrics["qualities"]] == [
        q.accuracy for q in report.bundle.manifest.cuts[0].qualities
    ]
    assert metrics["cut"] == "middle"
    assert {name: tail["measure"] for name, tail in metrics["tails"].items()} == {
        "parity": "right",
        "picture": "PSNR, dB",
        "where": "mean IoU",
    }
    assert all(len(tail["values"]) == 2 for tail in metrics["tails"].values())
    assert metrics["symbols"] == {"compared": report.symbols, "differing": report.differing}
    assert {price["part"] for price in metrics["prices"]} >= {"encoder", "teacher's head"}
    assert (folder / "rate-accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "curves").glob("events.*"))


def test_one_payload_has_four_answers_through_a_real_server(made: tuple[Report, Path]) -> None:
    report, folder = made
    part = DATA.validation
    tails = ("main", "parity", "picture", "where")
    with server_process(folder / "bundles") as (_, address), Device(report.bundle.root, address, tails=tails) as device:
        outcomes = [device.infer(picture) for picture in part.pictures[:60]]
    assert all(outcome.error is None for outcome in outcomes)
    right = np.mean(
        [o.answers["parity"].top[0].index == label % 2 for o, label in zip(outcomes, part.labels, strict=False)]
    )
    assert right > 0.8
    assert outcomes[0].answers["picture"].outputs["picture.output"].shape == (3, students.SIDE, students.SIDE)
    restored = np.stack([o.answers["picture"].outputs["picture.output"] for o in outcomes])
    wanted = part.pictures[:60].transpose(0, 3, 1, 2) / 255
    assert np.mean((restored - wanted) ** 2) < 0.5 * wanted.var()
    ink = np.stack([o.answers["where"].outputs["where.output"] for o in outcomes])
    truth = part.pictures[:60, ..., 0] > 100
    assert ink.dtype == np.uint8
    assert (ink & truth).sum() > 0.6 * (ink | truth).sum()
    assert report.tails["where"].values[1] > 0.7


def test_the_exit_is_small_sure_of_what_it_knows_and_takes_the_heads_symbols(made: tuple[Report, Path]) -> None:
    report, _ = made
    bundle = report.bundle
    early = bundle.manifest.cuts[0].exit
    assert early is not None
    assert len(early.qualities) == 2
    best = early.qualities[1]
    assert best.points[-1].agreement > best.agreement
    session = open_session(bundle.file(early.graph))
    assert {value.name for value in session.get_inputs()} == {"bottleneck.symbols", "quality"}
    assert bundle.file(early.graph).stat().st_size < bundle.file(bundle.manifest.cuts[0].tail).stat().st_size


def test_the_head_ends_in_the_steps_that_were_trained(made: tuple[Report, Path]) -> None:
    report, folder = made
    head = onnx.load(report.bundle.file("head.onnx"))
    found = {w.name: onnx.numpy_helper.to_array(w) for w in head.graph.initializer}
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["student"]
    inverse = next(array for name, array in found.items() if name.endswith("inverse_steps"))
    assert np.allclose(1 / inverse, state["quantiser.log_steps"].exp().numpy(), rtol=1e-6)


def test_the_command_line_trains_goes_on_and_says_what_it_found(tmp_path: Path) -> None:
    weights = students.save_teacher(tmp_path / "teacher.pt")
    command = narrows(
        "train", "--teacher", "students:module", "--weights", weights, "--data", "students:arrays", "--at", "middle",
        "--preprocess", "mean=78,std=96", "--method", "bottlefit", "--levels", 4, "--channels", 4, "--stride", 4,
        "--epochs", "1,1", "--threads", 1, "--json", "-o", tmp_path / "run",
    )  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["name"] == "run"
    assert len(said["qualities"]) == 1
    again = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert "stage 1" not in again.stderr  # all of it was trained already
    assert json.loads(again.stdout)["qualities"] == said["qualities"]


def test_an_encoder_of_ones_own_is_taken(tmp_path: Path) -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 4, 1))
    decoder = nn.Sequential(nn.Upsample(size=(12, 12)), nn.Conv2d(4, 16, 3, 1, 1))
    options = replace(students.QUICK, epochs=(1, 0), precision="bfloat16")
    report = run_recipe(
        students.teacher(),
        students.some(256, 64),
        options,
        output=tmp_path / "own",
        at="middle",
        pair=Pair(encoder, decoder),
        progress=lambda *_: None,
    )
    assert report.prices[1].params == sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("tail", ["parity", "=reconstruct", "x=", "parity=nowhere:at_all"])
def test_a_tail_that_cannot_be_is_refused(tmp_path: Path, tail: str) -> None:
    with pytest.raises(UsageError):
        run_recipe(
            students.teacher(trained=False),
            students.some(128, 64),
            replace(students.QUICK, epochs=(1, 0)),
            output=tmp_path / "run",
            at="middle",
            tails=(tail,),
            progress=lambda *_: None,
        )


def test_a_further_tail_learns_from_a_teacher_of_its_own(tmp_path: Path) -> None:
    """What its teacher says counts, and what is written on the pictures hardly does."""
    whole = students.teacher()
    options = replace(students.QUICK, epochs=(6, 3), distil_weight=1.0, views=2, precision="bfloat16")
    trained = train(whole, DATA, options, output=tmp_path / "run", at="middle")
    wrong = replace(DATA.train, labels=(DATA.train.labels + 1) % 10)
    task = Task("again", classifier(trained, 10), wrong, DATA.validation, nn.functional.cross_entropy, teacher=whole)
    tail = train_task(trained, task, epochs=6, recorder=Silent(), progress=lambda *_: None)
    x = torch.from_numpy(DATA.validation.pictures)
    with torch.no_grad():
        said = tail(restored_symbols(trained, x)).argmax(1)
        assert (said == whole.module(whole.normalised(x)).argmax(1)).float().mean() > 0.7


def test_the_entropic_student_leaves_its_encoder_alone_in_the_second_stage() -> None:
    assert TrainOptions(method="entropic").encoder_frozen
    assert not TrainOptions(method="ladder").encoder_frozen
    assert not TrainOptions(method="bottlefit").encoder_frozen
