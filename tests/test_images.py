"""Pictures as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from narrows.runtime import images
from narrows.runtime.errors import SourceError
from narrows.runtime.images import fit, load_image
from narrows.runtime.manifest import Preprocess
from PIL import Image


def gradient(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
def test_every_kind_of_picture_becomes_rgb_bytes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("p.jpg" if mode == "CMYK" else "p.png")
    Image.fromarray(gradient(7, 9)).convert(mode).save(path)
    picture = load_image(path)
    assert (picture.shape, picture.dtype) == ((7, 9, 3), np.uint8)


def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(gradient(4, 10)).save(tmp_path / "p.png", exif=exif)
    assert load_image(tmp_path / "p.png").shape == (10, 4, 3)


def test_what_is_no_picture_is_an_error_with_the_name(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    Image.fromarray(gradient(64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    for name in ("text.jpg", "half.jpg", "absent.jpg"):
        with pytest.raises(SourceError, match=name):
            load_image(tmp_path / name)


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    Image.fromarray(gradient(11, 10)).save(tmp_path / "p.png")
    with pytest.raises(SourceError, match="more than 100"):
        load_image(tmp_path / "p.png")


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    how=st.sampled_from(["crop", "stretch", "pad"]),
    crop=st.sampled_from([0.5, 0.875, 1.0]),
)
def test_any_picture_fits(size: tuple[int, int], target: tuple[int, int], how: str, crop: float) -> None:
    picture = gradient(*size)
    fitted = fit(picture, Preprocess(*target, fit=how, crop=crop))
    assert (fitted.shape, fitted.dtype) == ((*target, 3), np.uint8)
    if size == target:
        assert fitted is picture


def test_crop_keeps_the_middle() -> None:
    picture = gradient(10, 20)
    np.testing.assert_array_equal(fit(picture, Preprocess(10, 10)), picture[:, 5:15])


def test_pad_fills_the_rest() -> None:
    fitted = fit(gradient(10, 20), Preprocess(20, 20, fit="pad", fill=7))
    np.testing.assert_array_equal(fitted[:10], gradient(10, 20))
    assert (fitted[10:] == 7).all()


@pytest.mark.parametrize("picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_array_of_a_picture_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(SourceError, match="uint8"):
        fit(picture, Preprocess(4, 4))
