"""Bundles on disk: what is accepted, what is refused, and what an archive can't do."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle, pictures
from narrows.runtime.bundle import Bundle, BundleWriter
from narrows.runtime.errors import BundleError, GoldenError
from narrows.runtime.halves import Head, Tail
from narrows.runtime.manifest import MANIFEST, Half


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))


def rewrite(bundle: Bundle, change) -> Path:
    """Change the manifest's JSON in place."""
    path = bundle.root / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return bundle.root


def test_opens_again_with_the_same_identity(bundle: Bundle) -> None:
    again = Bundle.open(bundle.root)
    assert again.digest == bundle.digest
    assert again.manifest == bundle.manifest


def test_equal_bundles_are_equal_to_the_byte(bundle: Bundle, tmp_path: Path) -> None:
    assert make_bundle(tmp_path / "other").digest == bundle.digest


@pytest.mark.parametrize("name", ["head.onnx", "tail.onnx", "golden/tail.npz"])
def test_a_changed_byte_is_named(bundle: Bundle, name: str) -> None:
    path = bundle.file(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle.root)


def test_one_half_needs_only_its_own_files(bundle: Bundle) -> None:
    bundle.file("tail.onnx").unlink()
    assert Bundle.open(bundle.root, Half.DEVICE).digest == bundle.digest
    with pytest.raises(BundleError, match=r"tail\.onnx is missing"):
        Bundle.open(bundle.root)


def test_an_archive_is_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    bundle.write_archive(tmp_path / "half.zip", Half.DEVICE)
    half = Bundle.open(tmp_path / "half.zip", Half.DEVICE)
    assert half.digest == bundle.digest
    assert not half.file("tail.onnx").exists()
    assert Head(half, half.manifest.cuts[0]).run(pictures(1), 0).symbols[0].shape == (8, 8, 8)
    bundle.write_archive(tmp_path / "again.zip", Half.DEVICE)
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "half.zip").read_bytes()


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape", "a\\..\\b", MANIFEST, ""])
def test_names_that_climb_are_refused(bundle: Bundle, name: str) -> None:
    def add(data: dict) -> None:
        data["files"][name] = data["files"]["head.onnx"]

    with pytest.raises(BundleError, match="not allowed"):
        Bundle.open(rewrite(bundle, add))


def test_an_archive_with_a_damaged_member_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.write(bundle.root / MANIFEST, MANIFEST)
        for name in bundle.manifest.files:
            archive.writestr(name, b"x" * bundle.manifest.files[name].size)
    with pytest.raises(BundleError, match="not the file that was cut"):
        Bundle.open(tmp_path / "bad.zip")


def test_an_archive_that_unpacks_to_more_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(bundle.root / MANIFEST, MANIFEST)
        for name in bundle.manifest.files:
            archive.writestr(name, bytes(10_000_000))
    with pytest.raises(BundleError, match="not as large as the manifest says"):
        Bundle.open(tmp_path / "bomb.zip")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(schema=99), "bundle schema 99"),
        (lambda d: d.pop("cuts"), "cuts"),
        (lambda d: d.update(cuts=[]), "no cut"),
        (lambda d: d["cuts"][0].update(qualities=[]), "no quality"),
        (lambda d: d["cuts"][0].update(head="other.onnx"), "not listed"),
        (lambda d: d["cuts"][0]["crossing"][0].update(levels=[4]), "alphabets"),
        (lambda d: d["cuts"][0]["crossing"][0].update(levels=[4, 16, 300]), "256 levels"),
        (lambda d: d["cuts"][0]["crossing"][0].update(channel_axis=3), "no axis 3"),
        (lambda d: d["cuts"][0]["crossing"][0]["symbols"].update(dtype="nonsense"), "nonsense"),
        (lambda d: d["files"]["head.onnx"].update(size=-1), "size"),
        (lambda d: d["files"]["head.onnx"].update(sha256="abc"), "sha256"),
    ],
)
def test_a_manifest_that_is_wrong_says_where(bundle: Bundle, change, text: str) -> None:
    with pytest.raises(BundleError, match=text):
        Bundle.open(rewrite(bundle, change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"{}"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.open(tmp_path)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"not a zip")
    for path in (tmp_path, tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(BundleError):
            Bundle.open(path)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), BundleWriter(target) as writer:
        writer.add("head.onnx", Half.DEVICE).write_bytes(b"half a graph")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_replaced_and_another_folder_is_not(bundle: Bundle, tmp_path: Path) -> None:
    assert make_bundle(bundle.root, seed=5).digest != bundle.digest
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(BundleError, match="is no bundle"):
        make_bundle(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(("half", "key"), [(Head, "golden_head"), (Tail, "golden_tail")])
def test_golden_vectors_that_do_not_come_out_are_told(bundle: Bundle, half: type, key: str) -> None:
    cut = bundle.manifest.cuts[0]
    path = bundle.file(getattr(cut, key))
    with np.load(path) as arrays:
        golden = dict(arrays)
    last = "symbols/2/0" if half is Head else "output/2/0"
    golden[last] = golden[last][::-1]
    np.savez(path, **golden)
    with pytest.raises(GoldenError, match="does not reproduce"):
        half(bundle, cut)
