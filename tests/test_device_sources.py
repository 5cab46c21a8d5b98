"""Inputs from files, folders, globs and arrays, and what is wrong with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import SIZE, make_bundle, pictures
from hypothesis import given
from hypothesis import strategies as st
from narrows.device import Outcome, Point, open_source, save
from narrows.device.inputs import arrange
from narrows.device.sources import natural
from narrows.runtime.errors import MissingDependencyError, SourceError
from narrows.runtime.manifest import Manifest, TensorSpec
from PIL import Image


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny").manifest


@pytest.fixture(scope="module")
def raw(manifest: Manifest) -> Manifest:
    """A model of two inputs that takes tensors as they are."""
    inputs = (TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "float32", (4,)))
    return replace(manifest, preprocess=None, inputs=inputs)


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, pictures(len(names)), strict=True):
        Image.fromarray(picture).resize((30, 20)).save(folder / name)


def names(where, manifest: Manifest) -> list[str]:
    return [Path(item.source).name for item in open_source(where, manifest)]


def test_a_folder_gives_its_pictures_in_natural_order(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path, "f10.png", "f2.png", "f1.jpg", "sky.bmp")
    write(tmp_path / "deeper", "g.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert names(tmp_path, manifest) == ["g.png", "f1.jpg", "f2.png", "f10.png", "sky.bmp"]
    assert names(f"{tmp_path}/f*.png", manifest) == ["f2.png", "f10.png"]
    assert names(f"{tmp_path}/**/g.png", manifest) == ["g.png"]
    assert names(tmp_path / "f2.png", manifest) == ["f2.png"]
    item = next(open_source(tmp_path, manifest))
    assert item.arrays[0].shape == (SIZE, SIZE, 3)
    assert item.arrays[0].dtype == np.uint8


def test_an_unreadable_picture_is_told_and_the_rest_goes_on(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "2.png").write_bytes(b"not a picture")
    items = list(open_source(tmp_path, manifest))
    assert [item.error is None for item in items] == [True, False, True]
    assert items[1].error.code == "source"
    assert "2.png" in str(items[1].error)


@pytest.mark.parametrize("where", ["nothing", "nothing*.png", "empty"])
def test_nothing_there_is_told_at_once(tmp_path: Path, manifest: Manifest, where: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        open_source(tmp_path / where, manifest)


def test_arrays_hold_one_frame_or_many(tmp_path: Path, manifest: Manifest) -> None:
    many = np.stack(pictures(3))
    np.save(tmp_path / "many.npy", many)
    np.save(tmp_path / "one.npy", many[0])
    np.savez(tmp_path / "named.npz", image=many, y=np.zeros(3))
    np.savez(tmp_path / "other.npz", x=many)
    for name in ("many.npy", "named.npz", "other.npz"):
        items = list(open_source(tmp_path / name, manifest))
        assert [item.source for item in items] == [f"{tmp_path / name}[{n}]" for n in range(3)]
        for item, picture in zip(items, many, strict=True):
            np.testing.assert_array_equal(item.arrays[0], picture)
    assert [item.source for item in open_source(tmp_path / "one.npy", manifest)] == [str(tmp_path / "one.npy")]


def test_several_inputs_are_found_by_name(tmp_path: Path, raw: Manifest) -> None:
    a, b = np.ones((5, 2, 3), np.float32), np.ones((5, 4), np.float32)
    np.savez(tmp_path / "good.npz", b=b, a=a)
    np.savez(tmp_path / "uneven.npz", b=b[:3], a=a)
    np.savez(tmp_path / "unnamed.npz", x=a, y=b)
    items = list(open_source(tmp_path / "good.npz", raw))
    assert [tuple(x.shape for x in item.arrays) for item in items] == [((2, 3), (4,))] * 5
    for name in ("uneven.npz", "unnamed.npz"):
        (item,) = open_source(tmp_path / name, raw)
        assert isinstance(item.error, SourceError)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x93NUMPY nonsense"])
def test_damaged_arrays_are_told(tmp_path: Path, manifest: Manifest, content: bytes) -> None:
    for name in ("x.npz", "x.npy"):
        (tmp_path / name).write_bytes(content)
        (item,) = open_source(tmp_path / name, manifest)
        assert isinstance(item.error, SourceError)


def test_no_pickle_is_opened(tmp_path: Path, manifest: Manifest) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", image=np.array([{"a": 1}], object))
    for name in ("objects.npy", "objects.npz"):
        (item,) = open_source(tmp_path / name, manifest)
        assert isinstance(item.error, SourceError)


def test_pictures_for_a_model_of_raw_tensors_are_refused(tmp_path: Path, raw: Manifest) -> None:
    write(tmp_path, "1.png")
    with pytest.raises(SourceError, match="raw tensors"):
        open_source(tmp_path, raw)


def test_a_video_gives_its_frames(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "film.avi"
    try:
        import cv2
    except ImportError:
        path.write_bytes(b"film")
        with pytest.raises(MissingDependencyError, match="video"):
            open_source(path, manifest)
        return
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 24))
    for shade in (0, 100, 200):
        writer.write(np.full((24, 32, 3), (shade, 0, 0), np.uint8))  # blue, green, red
    writer.release()
    items = list(open_source(path, manifest))
    assert len(items) == 3
    assert items[2].arrays[0][..., 2].mean() > 150  # blue comes last in RGB
    path.write_bytes(b"no film")
    with pytest.raises(SourceError):
        open_source(path, manifest)


@pytest.mark.parametrize("where", ["rtsp://127.0.0.1:1/none", "gst:no-such-element ! appsink", "camera:99"])
def test_a_stream_that_is_not_there_is_told(manifest: Manifest, where: str) -> None:
    with pytest.raises((SourceError, MissingDependencyError)):
        open_source(where, manifest)


def test_a_picture_of_the_right_size_is_not_copied(manifest: Manifest) -> None:
    picture = pictures(1)[0]
    assert np.shares_memory(arrange(picture, manifest)[0], picture)


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_numbers_sort_as_numbers(numbers: list[int]) -> None:
    ordered = sorted((Path(f"frame{n}.png") for n in numbers), key=natural)
    assert ordered == [Path(f"frame{n}.png") for n in sorted(numbers)]


@given(source=st.text(max_size=300), name=st.sampled_from(["logits", "a/b", "file", "self", "é:0"]))
def test_outputs_are_saved_under_safe_names(tmp_path_factory, source: str, name: str) -> None:
    folder = tmp_path_factory.mktemp("out")
    outputs = {name: np.arange(6, dtype=np.float32).reshape(2, 3)}
    path = save(Outcome(7, source, Point("split", "c", 0), outputs=outputs), folder)
    assert path.parent == folder
    assert path.name.startswith("000007-")
    with np.load(path) as loaded:
        np.testing.assert_array_equal(loaded[name], outputs[name])
