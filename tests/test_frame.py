"""Symbols into frames and back, and what a stranger's frame gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bundles import CHANNELS, LEVELS, SIZE, make_bundle
from hypothesis import given
from hypothesis import strategies as st
from narrows.runtime.bundle import Bundle
from narrows.runtime.codec import labels
from narrows.runtime.errors import ChecksumError, CoderError, FrameTooLargeError, QualityError, ShapeError
from narrows.runtime.frame import CodedTensor, Frame, FrameCodec, Limits

SHAPE = (CHANNELS, SIZE // 2, SIZE // 2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def some_symbols(quality: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, LEVELS[quality], SHAPE).astype(np.uint8)


def some_frame(bundle: Bundle, coder: str = "bitplane-zstd/1") -> Frame:
    return FrameCodec(bundle, 0).pack(3, [some_symbols(1)], 1, coder)


@pytest.mark.parametrize("coder", labels())
@given(quality=st.integers(0, len(LEVELS) - 1), seed=st.integers(0, 1000))
def test_the_tail_sees_the_symbols_of_the_head(bundle: Bundle, coder: str, quality: int, seed: int) -> None:
    codec, symbols = FrameCodec(bundle, 0), some_symbols(quality, seed)
    (decoded,) = codec.unpack(codec.pack(1, [symbols], quality, coder))
    np.testing.assert_array_equal(decoded, symbols)
    assert decoded.dtype == symbols.dtype


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"checksum": 1}, ChecksumError),
        ({"quality": 2}, (ChecksumError, CoderError)),
        ({"quality": 9}, QualityError),
        ({"coder": 77}, CoderError),
        ({"tensors": ()}, ShapeError),
        ({"tensors": (CodedTensor(b"\x00" * 100_000),)}, FrameTooLargeError),
        ({"tensors": (CodedTensor(b"\x01\xff", (8, 8, 9)),)}, ShapeError),
        ({"tensors": (CodedTensor(b"", (8, 8)),)}, ShapeError),
        ({"tensors": (CodedTensor(b""),)}, CoderError),
    ],
)
def test_a_frame_that_lies_is_refused(bundle: Bundle, change: dict, error: type) -> None:
    with pytest.raises(error):
        FrameCodec(bundle, 0).unpack(replace(some_frame(bundle), **change))


def test_the_cap_binds_at_both_ends(bundle: Bundle) -> None:
    tight = FrameCodec(bundle, 0, Limits(max_frame_bytes=10))
    with pytest.raises(FrameTooLargeError, match="10 are allowed"):
        tight.pack(1, [some_symbols(2)], 2, "raw/1")
    with pytest.raises(FrameTooLargeError):
        tight.unpack(some_frame(bundle))


@given(payload=st.binary(max_size=600), quality=st.integers(0, 2), coder=st.integers(0, 2))
def test_noise_is_refused_and_never_believed(bundle: Bundle, payload: bytes, quality: int, coder: int) -> None:
    frame = Frame(1, 0, quality, coder, 12345, (CodedTensor(payload),))
    with pytest.raises((ChecksumError, CoderError, FrameTooLargeError)):
        FrameCodec(bundle, 0).unpack(frame)
