"""Labelled pictures: where they come from, what is wrong with them, and the batches that training sees."""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from narrows.partitioner.training.batches import (
    CHARACTERS,
    PHOTOGRAPHS,
    SMALL_PICTURES,
    Augmentation,
    Batches,
    Views,
    augment,
)
from narrows.partitioner.training.data import DataOptions, Part, read_data
from narrows.runtime.errors import SourceError, UsageError
from narrows.runtime.manifest import Preprocess
from PIL import Image

SIZE = Preprocess(16, 16)


def colours(count: int, side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def class_folders(root: Path, **classes: int) -> Path:
    for k, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i, picture in enumerate(colours(count, 20, seed=k)):
            Image.fromarray(picture).save(root / name / f"{i:03d}.png")
    return root


# -- folders -----------------------------------------------------------------------------------------------------------


def test_class_folders_are_classes_in_alphabetical_order_and_pictures_are_fitted(tmp_path: Path) -> None:
    data = read_data(class_folders(tmp_path / "d", rose=6, daisy=4), SIZE, DataOptions(validation=0.5))
    assert data.classes == ("daisy", "rose")
    assert data.train.pictures.shape == (5, 16, 16, 3)
    assert sorted(data.train.labels) == sorted(data.validation.labels) == [0, 0, 1, 1, 1]
    data.check_classes(2)


def test_a_split_is_the_same_for_the_same_seed_and_loses_no_picture(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "d", a=9, b=7)
    first, again, other = (read_data(root, SIZE, DataOptions(seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.validation.pictures, again.validation.pictures)
    assert not np.array_equal(first.validation.pictures, other.validation.pictures)
    together = np.concatenate([first.train.pictures, first.validation.pictures])
    assert len(np.unique(together.reshape(16, -1), axis=0)) == 16


def test_train_and_test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    class_folders(tmp_path / "d" / "train", a=3, b=3)
    class_folders(tmp_path / "d" / "test", a=2, b=1)
    data = read_data(tmp_path / "d", SIZE)
    assert (len(data.train), len(data.validation)) == (6, 3)


def test_unreadable_pictures_are_counted_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = class_folders(tmp_path / "d", a=4, b=4)
    (root / "a" / "001.png").write_bytes(b"no picture")
    (root / "b" / "002.png").write_bytes((root / "b" / "003.png").read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        data = read_data(root, SIZE)
    assert len(data.train) + len(data.validation) == 6
    assert len(data.skipped) == 2
    assert "left out 2 of 8 pictures" in caplog.text
    assert "001.png" in caplog.text
    assert "002.png" in caplog.text
    expected = np.asarray(Image.open(root / "b" / "003.png").resize((16, 16), Image.Resampling.BILINEAR))
    both = np.concatenate([data.train.pictures, data.validation.pictures])
    assert any(np.array_equal(expected, picture) for picture in both)  # labels and pictures kept their places


def test_a_class_of_which_nothing_can_be_read_ends_it(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "d", a=3, b=2)
    for path in (root / "b").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(SourceError, match=r"no picture of class b \(2 pictures could not be read\)"):
        read_data(root, SIZE)


def test_an_empty_class_folder_ends_it(tmp_path: Path) -> None:
    (class_folders(tmp_path / "d", a=3) / "empty").mkdir()
    with pytest.raises(SourceError, match="empty: no pictures in this class folder"):
        read_data(tmp_path / "d", SIZE)


def test_parts_with_different_classes_are_refused_by_name(tmp_path: Path) -> None:
    class_folders(tmp_path / "d" / "train", a=2, b=2)
    class_folders(tmp_path / "d" / "val", a=2, c=2)
    with pytest.raises(UsageError, match="different classes: b, c"):
        read_data(tmp_path / "d", SIZE)


def test_classes_are_held_against_the_teachers(tmp_path: Path) -> None:
    data = read_data(class_folders(tmp_path / "d", daisy=2, rose=2), SIZE)
    with pytest.raises(UsageError, match=r"teacher tells 10 classes apart, but .* has 2 \(daisy, rose\)"):
        data.check_classes(10)


def test_a_class_of_one_picture_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="class 'b' has one picture"):
        read_data(class_folders(tmp_path / "d", a=3, b=1), SIZE)


@pytest.mark.parametrize("what", ["nothing", "file", "folder without classes"])
def test_what_is_no_data_is_said_so(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    if what == "file":
        path.write_text("hello")
    if what == "folder without classes":
        path.mkdir()
        Image.fromarray(colours(1)[0]).save(path / "p.png")
    with pytest.raises(SourceError, match="class folders"):
        read_data(path, SIZE)


def test_limits_hold_before_anything_is_decoded(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "d", a=3, b=3)
    with pytest.raises(UsageError, match="6 pictures are more than the limit of 5"):
        read_data(root, SIZE, DataOptions(max_pictures=5))
    with pytest.raises(UsageError, match="2 classes; between 2 and 1"):
        read_data(root, SIZE, DataOptions(max_classes=1))


def test_beyond_the_memory_allowed_pictures_are_kept_in_a_file(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "d", a=4, b=4)
    data = read_data(root, SIZE, DataOptions(memory_bytes=0, validation=0.25))
    plain = read_data(root, SIZE, DataOptions(validation=0.25))
    assert np.array_equal(data.train.pictures, plain.train.pictures)


def test_a_disk_without_room_for_the_pictures_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "d", a=2, b=2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(SourceError, match="set TMPDIR to a larger disk"):
        read_data(root, SIZE, DataOptions(memory_bytes=0))


# -- arrays ------------------------------------------------------------------------------------------------------------


def test_an_npz_with_parts_and_names(tmp_path: Path) -> None:
    y = np.array([0, 1, 0, 1], np.int32)
    path = tmp_path / "d.npz"
    np.savez(path, x=colours(4), y=y, x_val=colours(2), y_val=y[:2], classes=["cat", "dog"], other=np.zeros(3))
    data = read_data(path, SIZE)
    assert data.classes == ("cat", "dog")
    assert np.array_equal(data.train.pictures, colours(4))
    assert np.array_equal(data.validation.labels, [0, 1])


def test_grey_arrays_become_rgb(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=colours(4)[..., 0], y=np.array([0, 0, 1, 1]))
    data = read_data(tmp_path / "d.npz", SIZE)
    assert np.array_equal(data.train.pictures[..., 0], data.train.pictures[..., 2])


def test_damaged_and_foreign_npz_files_are_refused(tmp_path: Path) -> None:
    cases = {
        "keys": ({"a": colours(2)}, "no array x and no y"),
        "floats": ({"x": colours(2) / 255.0, "y": [0, 1]}, "x is uint8"),
        "labels": ({"x": colours(2), "y": [0.5, 1]}, "integer class"),
        "count": ({"x": colours(2), "y": [0]}, "integer class"),
        "outside": ({"x": colours(2), "y": [0, 5], "classes": ["a", "b"]}, "label 5 is outside its 2 classes"),
        "negative": ({"x": colours(4), "y": [0, 1, 1, -1]}, "label -1"),
        "gap": ({"x": colours(4), "y": [0, 0, 2, 2]}, "no picture of class 1"),
        "one class": ({"x": colours(2), "y": [0, 0]}, "1 classes"),
        "pickle": ({"x": np.array([{}, {}], object), "y": [0, 1]}, "no readable file"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **{k: np.asarray(v) for k, v in arrays.items()})
        with pytest.raises((SourceError, UsageError), match=message):
            read_data(tmp_path / f"{name}.npz", SIZE)
    whole = (tmp_path / "gap.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="no readable file"):
        read_data(tmp_path / "cut.npz", SIZE)


def test_an_array_that_says_it_is_huge_is_refused_by_its_header(tmp_path: Path) -> None:
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 16, 16, 3)}
    )
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.writestr("y.npy", b"")
    with pytest.raises(UsageError, match="says that it takes"):
        read_data(tmp_path / "d.npz", SIZE)


def test_digits_are_there() -> None:
    data = read_data("digits", Preprocess(32, 32))
    assert len(data.classes) == 10
    assert data.train.pictures.shape == (1347, 32, 32, 3)


# -- datasets of one's own ---------------------------------------------------------------------------------------------

OWN = """
import numpy as np, torch
from PIL import Image

class Dataset:
    classes = ["ape", "bee"]
    def __init__(self, kind, count=6):
        self.kind, self.count = kind, count
    def __len__(self):
        return self.count
    def __getitem__(self, i):
        x = np.full((16, 16, 3), 40 * i, np.uint8)
        if self.kind == "pil":
            x = Image.fromarray(x)
        if self.kind == "torch":
            x = torch.from_numpy(x).permute(2, 0, 1)
        if self.kind == "float":
            x = torch.rand(3, 16, 16)
        if self.kind == "broken" and i == 1:
            return Broken(), i % 2
        return x, i % 2

class Broken:
    def __array__(self, *a, **k):
        raise OSError("a bad sector")

def pil(): return Dataset("pil"), Dataset("pil", 2)
def tensors(): return Dataset("torch")
def floats(): return Dataset("float")
def broken(): return Dataset("broken")
def arrays(): return np.zeros((4, 16, 16, 3), np.uint8), np.array([0, 1, 0, 1])
def nonsense(): return 7
def raises(): raise ValueError("no such shard")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_dataset.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_dataset", raising=False)
    return "own_dataset"


def test_own_datasets_give_pictures_of_every_kind(own: str) -> None:
    pil = read_data(f"{own}:pil", SIZE)
    assert pil.classes == ("ape", "bee")
    assert (len(pil.train), len(pil.validation)) == (6, 2)
    tensors = read_data(f"{own}:tensors", SIZE)
    assert set(np.unique(tensors.train.pictures)) <= {0, 40, 80, 120, 160, 200}
    assert len(read_data(f"{own}:arrays", SIZE).classes) == 2


def test_own_datasets_that_go_wrong_are_errors_for_people(own: str) -> None:
    with pytest.raises(UsageError, match="normalisation is the teacher's"):
        read_data(f"{own}:floats", SIZE)
    with pytest.raises(UsageError, match="a dataset has a length"):
        read_data(f"{own}:nonsense", SIZE)
    with pytest.raises(SourceError, match="ValueError: no such shard"):
        read_data(f"{own}:raises", SIZE)
    with pytest.raises(SourceError, match="has no 'absent'"):
        read_data(f"{own}:absent", SIZE)
    with pytest.raises(SourceError, match="cannot be imported"):
        read_data("no_such_module:data", SIZE)
    assert len(read_data(f"{own}:broken", SIZE).skipped) == 1


# -- batches -----------------------------------------------------------------------------------------------------------


def part(count: int = 40, side: int = 16) -> Part:
    return Part(colours(count, side), np.arange(count) % 5)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_threads_nor_on_where_an_epoch_was_taken_up(workers: int) -> None:
    alone = list(Batches(part(), 8, PHOTOGRAPHS, seed=3, workers=0).epoch(2))
    threads = list(Batches(part(), 8, PHOTOGRAPHS, seed=3, workers=workers).epoch(2, first=2))
    assert len(alone) == 5
    for (x, y), (x2, y2) in zip(alone[2:], threads, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_an_epoch_sees_every_picture_once_and_the_next_in_another_order() -> None:
    batches = Batches(part(), 8, workers=0)
    first, second = (torch.cat([x for x, _ in batches.epoch(n)]) for n in (0, 1))
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert len(torch.unique(epoch.flatten(1), dim=0)) == 40


def test_a_training_that_stops_early_leaves_no_threads_waiting() -> None:
    steps = Batches(part(), 2, PHOTOGRAPHS, workers=2).epoch(0)
    next(steps)
    steps.close()


def test_labels_stay_with_their_pictures() -> None:
    whole = part()
    for x, y in Batches(whole, 8, workers=0).epoch(0):
        for picture, label in zip(x.numpy(), y, strict=True):
            row = next(i for i, own in enumerate(whole.pictures) if np.array_equal(own, picture))
            assert whole.labels[row] == label


def test_shifts_without_zoom_keep_every_pixel_value() -> None:
    pictures = colours(8, 32)
    made = augment(pictures, SMALL_PICTURES, np.random.default_rng(0)).numpy()
    assert not np.array_equal(made, pictures)
    for before, after in zip(pictures, made, strict=True):
        seen = {tuple(p) for p in before.reshape(-1, 3)}
        assert all(tuple(p) in seen for p in after.reshape(-1, 3))


def test_characters_are_never_mirrored() -> None:
    arrow = np.zeros((1, 32, 32, 3), np.uint8)
    arrow[:, :, :12] = 255
    for seed in range(20):
        made = augment(arrow, CHARACTERS, np.random.default_rng(seed)).numpy()[0, 16, :, 0].astype(int)
        assert made[:8].mean() > made[-8:].mean()


@settings(max_examples=25)
@given(
    flip=st.booleans(),
    shift=st.floats(0, 0.5),
    crop=st.floats(0.2, 1),
    aspect=st.floats(0, 0.5),
    light=st.floats(0, 0.9),
)
def test_augmented_pictures_are_pictures(flip: bool, shift: float, crop: float, aspect: float, light: float) -> None:
    how = Augmentation(flip, shift, crop, aspect, light, light)
    made = augment(colours(3, 12), how, np.random.default_rng(0))
    assert (made.dtype, tuple(made.shape)) == (torch.uint8, (3, 12, 12, 3))
    assert torch.equal(made, augment(colours(3, 12), how, np.random.default_rng(0)))


@dataclass(frozen=True)
class Kept:
    pictures: torch.Tensor

    @property
    def size_bytes(self) -> int:
        return self.pictures.numel()


def test_views_come_round_again_from_memory_until_they_are_forgotten() -> None:
    asked = []

    def make(pictures: torch.Tensor, _labels: torch.Tensor) -> Kept:
        asked.append(1)
        return Kept(pictures)

    views = Views(Batches(part(), 8, Augmentation(flip=True)), 2, make)
    steps = views.batches.steps
    first, second, again, late = (list(views.epoch(*place)) for place in ((0,), (1,), (2,), (3, 1)))
    assert len(asked) == 2 * steps
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert all(a is b for a, b in zip(second[1:], late, strict=True))
    views.forget()
    made = list(views.epoch(4))
    assert len(asked) == 3 * steps
    assert all(torch.equal(a.pictures, b.pictures) for a, b in zip(first, made, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_so_many_pictures_are_mixed_and_none_is_less_than_half_itself(share: float) -> None:
    flat = np.repeat((np.arange(200, dtype=np.uint8) % 2 * 200)[:, None, None, None], 3, axis=3)
    made = augment(flat, Augmentation(mix=share), np.random.default_rng(0)).numpy()
    away = np.abs(made.astype(int) - flat.astype(int)).max((1, 2, 3))
    assert away.max() <= 100
    # Every second picture is mixed with its like, which shows nothing.
    assert abs(np.mean(away > 0) - share / 2) < 0.12


def test_options_that_cannot_be_are_refused() -> None:
    for make in (
        lambda: Augmentation(mix=1.5),
        lambda: Augmentation(crop=0),
        lambda: Augmentation(brightness=1),
        lambda: DataOptions(validation=0),
        lambda: DataOptions(workers=0),
        lambda: Batches(part(), 0),
        lambda: Batches(Part(colours(0), np.zeros(0, np.int64)), 4),
    ):
        with pytest.raises(UsageError):
            make()
