"""The privacy meter: its measures, its baselines, and an attacker that really learns."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import SIZE, make_bundle
from narrows.cli import app
from narrows.runtime import audit as audits
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import QualityError, SourceError, UsageError
from narrows.runtime.manifest import CrossingTensor, TensorSpec
from PIL import Image
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="an audit trains a network")

from narrows.partitioner.audit import AuditOptions, audit, jpeg_within  # noqa: E402
from narrows.partitioner.inversion import Training, as_planes, train_attacker  # noqa: E402
from narrows.partitioner.similarity import psnr, ssim  # noqa: E402

QUICK = AuditOptions(qualities=(0, 2), steps=80, size=16, threads=1, examples=2)


def nothing(*_: object) -> None:
    """No progress is shown."""


def blobs(count: int) -> np.ndarray:
    """Pictures with something to see: a bright spot of some colour on a dark slope."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:SIZE, :SIZE]
    made = []
    for _ in range(count):
        cx, cy, slope = *rng.uniform(3, SIZE - 3, 2), rng.uniform(0, 60)
        spot = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8)[..., None] * rng.uniform(60, 180, 3)
        made.append(np.clip(spot + (slope * x / SIZE)[..., None], 0, 255))
    return np.stack(made).astype(np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("audit") / "tiny")


@pytest.fixture(scope="module")
def found(bundle: Bundle) -> audits.Audit:
    return audit(bundle, blobs(100), QUICK, nothing)


# The measures.


def test_a_decibel_is_a_decibel() -> None:
    true = torch.full((2, 3, 16, 16), 0.5)
    assert psnr(true, true).tolist() == [100, 100]
    assert psnr(true + 0.1, true).tolist() == pytest.approx([20, 20], abs=1e-4)


def test_structural_similarity_is_what_its_equation_says() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1, 1, 13, 12))
    axis = np.arange(11) - 5
    line = np.exp(-(axis**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for i in range(3):
        for j in range(2):
            x, y = a[0, 0, i : i + 11, j : j + 11], b[0, 0, i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    made = ssim(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert float(made[0]) == pytest.approx(np.mean(values), abs=1e-4)
    assert float(ssim(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4))[0]) == pytest.approx(1)


# The attack.


def test_the_attacker_sees_more_than_the_mean_picture(found: audits.Audit) -> None:
    mean, coarse, _, fine, _ = found.rows
    assert fine.psnr_db > coarse.psnr_db > mean.psnr_db + 3
    assert fine.ssim > mean.ssim
    assert coarse.bytes is not None
    assert fine.bytes is not None
    assert coarse.bytes < fine.bytes
    assert (found.trained_on, found.tried_on, found.size) == (80, 20, (16, 16))
    assert not found.cut_short
    assert "lower bound" in found.says


def test_the_same_seed_finds_the_same(bundle: Bundle, found: audits.Audit) -> None:
    assert audit(bundle, blobs(100), QUICK, nothing) == found
    other = audit(bundle, blobs(100), replace(QUICK, seed=1, qualities=(0,)), nothing)
    assert other.rows[1] != found.rows[1]


def test_examples_are_pictures(found: audits.Audit) -> None:
    assert [row.what for row in found.examples] == ["the picture", *(row.what for row in found.rows)]
    for row in found.examples:
        assert len(row.pictures) == 2
        for url in row.pictures:
            assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (16, 16)


def test_too_little_time_is_told(bundle: Bundle) -> None:
    short = audit(bundle, blobs(60), replace(QUICK, minutes=1e-6), nothing)
    assert short.cut_short
    assert [row.steps for row in short.rows if row.steps] == [1, 1]


@pytest.mark.parametrize("most_bytes", [400, 700, 2000, 100_000])
def test_a_jpeg_is_as_large_as_it_may_be(most_bytes: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    made, size = jpeg_within(picture, most_bytes)
    assert size <= most_bytes
    assert made.shape[2] == 3
    assert size > most_bytes / 3 or most_bytes == 100_000


@pytest.mark.parametrize(
    ("shapes", "axis", "planes"),
    [
        ([(8, 5, 4)], 0, (8, 5, 4)),
        ([(5, 4, 8)], 2, (8, 5, 4)),
        ([(17, 6)], 1, (6, 4, 4)),
        ([(16, 6)], 1, (6, 4, 4)),
        ([(12,)], 0, (12, 1, 1)),
        ([(8, 4, 4), (3, 8, 8)], 0, (11, 8, 8)),
    ],
)
def test_whatever_crosses_becomes_planes(shapes: list[tuple[int, ...]], axis: int, planes: tuple[int, ...]) -> None:
    tensors = [CrossingTensor(f"t{i}", TensorSpec(f"t{i}", "uint8", s), (256,), axis) for i, s in enumerate(shapes)]
    frames = [[np.zeros(shape, np.uint8) for shape in shapes] for _ in range(20)]
    made = as_planes(frames, tensors)
    assert made.shape == (20, *planes)
    attacker = train_attacker(made, torch.rand(20, 3, 18, 17), Training(steps=1), nothing)
    assert attacker.reconstruct(made).shape == (20, 3, 18, 17)


# What cannot be.


def test_what_cannot_be_audited_is_told(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="40 pictures"):
        audit(bundle, blobs(39), QUICK, nothing)
    with pytest.raises(QualityError):
        audit(bundle, blobs(60), replace(QUICK, qualities=(9,)), nothing)
    with pytest.raises(QualityError):
        audit(bundle, blobs(60), replace(QUICK, cut="nowhere"), nothing)
    raw = Bundle(bundle.root, replace(bundle.manifest, preprocess=None), bundle.digest)
    with pytest.raises(UsageError, match="picture"):
        audit(raw, blobs(60), QUICK, nothing)
    for wrong in ({"pictures": 3}, {"size": 2}, {"steps": 0}, {"minutes": 0.0}):
        with pytest.raises(UsageError):
            replace(QUICK, **wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"rows": "none"},
        {"examples": [{"what": "a", "pictures": ["https://example.org/a.png"]}]},
        {"examples": [{"what": "a", "pictures": ["data:image/svg+xml;base64,AAAA"]}]},
    ],
)
def test_a_strangers_file_is_refused(found: audits.Audit, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "audit.json"
    audits.write(found, path)
    assert audits.read(path) == found
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError):
        audits.read(path)
    path.write_text("[" * 100_000)
    with pytest.raises(UsageError):
        audits.read(path)
    with pytest.raises(UsageError):
        audits.read(tmp_path / "nowhere.json")


def test_the_verb_writes_a_page_and_a_file(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "pictures.npy", blobs(60))
    words = ["audit", str(bundle.root), "--data", str(tmp_path / "pictures.npy"), "--steps", "5", "--quality", "1"]
    files = ["-o", str(tmp_path / "a.html"), "-o", str(tmp_path / "a.json")]
    done = CliRunner().invoke(app, [*words, *files, "--json"])
    assert done.exit_code == 0, done.output
    assert audits.read(tmp_path / "a.json").rows[1].what == "quality 1 (4 bits)"
    page = (tmp_path / "a.html").read_text()
    assert len(page) < 1_000_000, "without pictures that slide there is no plotting library in it"
    refused = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "a.txt")])
    assert isinstance(refused.exception, UsageError)
