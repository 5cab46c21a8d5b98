"""The laws of every coder, and what the context coder adds to them."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest
from codec_cases import crooked_table, smooth_symbols, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from narrows.runtime.codec import SymbolSpec, _twin, by_label, by_number, labels, train_table
from narrows.runtime.codec.context import BoundContext, Context, engine, has_kernel
from narrows.runtime.codec.model import Geometry, default_table, pack, unpack
from narrows.runtime.errors import BundleError, CoderError

LEVELS = (1, 2, 3, 4, 8, 15, 16, 17, 40, 256, 257, 1000, 65_536)


@st.composite
def tensors(draw, levels=LEVELS, max_side=9):
    """A spec and symbols for it: rank 0 to 4, dense, sparse, or with rare outliers."""
    top = draw(st.sampled_from(levels))
    shape = tuple(draw(st.lists(st.integers(0, max_side), max_size=4)))
    axis = draw(st.sampled_from([None, *range(len(shape))]))
    dtype = np.dtype(np.uint16 if top > 256 or draw(st.booleans()) else np.uint8)
    common = st.integers(0, min(top - 1, draw(st.sampled_from([0, 1, top - 1]))))
    symbols = draw(hnp.arrays(dtype, shape, elements=common))
    if symbols.size and draw(st.booleans()):
        symbols.reshape(-1)[draw(st.integers(0, symbols.size - 1))] = top - 1
    return SymbolSpec(shape, dtype, top, axis), symbols


@pytest.mark.parametrize("label", labels())
@given(case=tensors())
@settings(max_examples=60)
def test_every_coder_gives_back_the_exact_symbols_within_the_cap(label, case):
    spec, symbols = case
    bound = by_label(label).bind(spec)
    payload = bound.encode(symbols)
    assert len(payload) <= spec.max_payload_bytes
    decoded = bound.decode(payload)
    assert decoded.dtype == spec.dtype
    assert decoded.shape == spec.shape
    assert np.array_equal(decoded, symbols)
    assert bound.estimate_bytes(symbols) >= 0


@pytest.mark.skipif(not has_kernel(), reason="the kernel is not built here, so there is nothing to compare")
@given(case=tensors(levels=LEVELS[1:], max_side=7), tabled=st.booleans())
@settings(max_examples=150)
def test_twin_and_kernel_write_and_read_the_same_bytes(case, tabled):
    spec, symbols = case
    if not symbols.size:
        return
    table = crooked_table(spec) if tabled else default_table(Geometry.of(spec))
    kernel, twin = BoundContext(spec, table, engine()), BoundContext(spec, table, _twin)
    payload = kernel.encode(symbols)
    assert payload == twin.encode(symbols)
    assert np.array_equal(twin.decode(payload), symbols)
    assert np.array_equal(kernel.decode(payload), symbols)
    assert kernel.estimate_bytes(symbols) == twin.estimate_bytes(symbols)


@pytest.mark.skipif(not has_kernel(), reason="the kernel is not built here, so there is nothing to compare")
@pytest.mark.parametrize(
    ("shape", "levels", "states"),
    [((5, 9, 9), 8, 1), ((7, 20, 20), 8, 2), ((21, 20, 21), 8, 4), ((21, 20, 21), 200, 8), ((21, 20, 21), 5000, 8)],
)
def test_twin_and_kernel_agree_on_several_states(shape, levels, states):
    symbols = smooth_symbols(shape, levels)
    spec = spec_of(symbols, levels, 0)
    kernel, twin = (BoundContext(spec, crooked_table(spec), e) for e in (engine(), _twin))
    assert kernel.model.states == states
    payload = kernel.encode(symbols)
    assert payload == twin.encode(symbols)
    assert np.array_equal(twin.decode(payload), symbols)


@pytest.mark.skipif(not has_kernel(), reason="the kernel is not built here, so there is nothing to compare")
@given(data=st.data())
@settings(max_examples=60)
def test_twin_and_kernel_refuse_the_same_payloads(data):
    spec, symbols = data.draw(tensors(levels=(4, 16, 200, 1000), max_side=5).filter(lambda c: c[1].size))
    table = default_table(Geometry.of(spec))
    kernel, twin = BoundContext(spec, table, engine()), BoundContext(spec, table, _twin)
    damaged = b"\x02" + data.draw(st.binary(max_size=40))
    assert outcome(kernel, damaged) == outcome(twin, damaged)
    damaged = bytearray(kernel.encode(symbols))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    assert outcome(kernel, bytes(damaged)) == outcome(twin, bytes(damaged))


def outcome(bound, payload):
    try:
        return bound.decode(payload).tobytes()
    except CoderError:
        return None


GOLDEN = {
    (4, False): (325, "6813ed6da77696b8"),
    (4, True): (413, "80d6e8a7de6395b8"),
    (16, False): (817, "642078c440224812"),
    (16, True): (1051, "7266ab67769a60bd"),
    (256, False): (1643, "67dfa4e7afed0324"),
    (256, True): (1841, "00484bc11b94224e"),
    (5_000, False): (2595, "4f9cd8882849a4ba"),
    (5_000, True): (3303, "0bbf0fac68b34ae2"),
}


@pytest.mark.parametrize("levels", [4, 16, 256, 5000])
@pytest.mark.parametrize("tabled", [False, True])
@pytest.mark.parametrize("with_twin", [False, True])
def test_golden_bytes(levels, tabled, with_twin):
    symbols = smooth_symbols((6, 17, 19), levels)
    spec = spec_of(symbols, levels, 0)
    table = crooked_table(spec) if tabled else default_table(Geometry.of(spec))
    payload = BoundContext(spec, table, _twin if with_twin else engine()).encode(symbols)
    assert (len(payload), hashlib.sha256(payload).hexdigest()[:16]) == GOLDEN[levels, tabled]


def test_as_it_is_tensors_of_any_dtype_cross():
    values = np.linspace(-3, 3, 600).reshape(2, 30, 10)
    for dtype in ("float32", "float16", "float64", "int8", "int32", "int64", "uint8", "bool"):
        array = values.astype(dtype)
        bound = by_label("context/1").bind(SymbolSpec(array.shape, array.dtype, None, 0))
        assert np.array_equal(bound.decode(bound.encode(array)), array)


@pytest.mark.parametrize(
    "symbols", [np.zeros((8, 9, 9), np.uint8), np.zeros((0, 4), np.uint8), np.full((1,), 3, np.uint8)]
)
def test_constant_empty_and_single_tensors_cost_a_few_bytes(symbols):
    bound = by_label("context/1").bind(spec_of(symbols, 4))
    assert len(bound.encode(symbols)) <= 2


def test_noise_costs_no_more_than_raw_and_sixteen_bytes():
    for levels, dtype in ((256, np.uint8), (65_536, np.uint16), (200, np.uint16)):
        symbols = np.random.default_rng(0).integers(0, levels, (7, 31, 33)).astype(dtype)
        spec = spec_of(symbols, levels, 0)
        assert len(by_label("context/1").bind(spec).encode(symbols)) <= spec.raw_bytes + 16


def test_neighbours_are_worth_bytes():
    symbols = smooth_symbols((16, 24, 24), 4)
    shuffled = np.random.default_rng(0).permutation(symbols.reshape(-1)).reshape(symbols.shape)
    bound = by_label("context/1").bind(spec_of(symbols, 4, 0))
    assert len(bound.encode(symbols)) < 0.95 * len(bound.encode(shuffled))


def test_symbols_that_cannot_be_are_refused_before_they_are_coded():
    spec = SymbolSpec((2, 3, 3), np.dtype(np.uint8), 4, 0)
    bound = by_label("context/1").bind(spec)
    symbols = np.zeros(spec.shape, np.uint8)
    symbols[1, 2, 2] = 4
    with pytest.raises(CoderError, match="below 4"):
        bound.encode(symbols)
    with pytest.raises(CoderError, match="below 4"):
        bound.encode(np.full(spec.shape, 9, np.uint8))
    with pytest.raises(CoderError, match="shape"):
        bound.encode(symbols[:1])


HOSTILE = {
    "nothing": b"",
    "tag-alone": b"\x02",
    "unknown-tag": b"\x07" + bytes(20),
    "tag-of-another-kind": b"\x01" + bytes(20),
    "state-too-small": b"\x02" + bytes(4),
    "state-largest": b"\x02" + b"\xff" * 4,
    "no-words": b"\x02\x00\x00\x01\x80",
    "odd-tail": b"\x02" + b"\x55" * 9,
    "too-many-words": b"\x02" + b"\x55" * 4000,
    "constant-outside": b"\x03\x10",
    "constant-too-long": b"\x03\x01\x01",
    "constant-empty": b"\x03",
    "raw-short": b"\x00" + bytes(7),
    "raw-outside": b"\x00" + b"\xff" * 320,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("with_twin", [False, True])
def test_hostile_payloads_are_refused(name, with_twin):
    spec = SymbolSpec((5, 8, 8), np.dtype(np.uint8), 16, 0)
    bound = BoundContext(spec, default_table(Geometry.of(spec)), _twin if with_twin else engine())
    with pytest.raises(CoderError):
        bound.decode(HOSTILE[name])


def test_every_truncation_and_every_extension_is_refused():
    symbols = smooth_symbols((4, 9, 9), 16)
    bound = by_label("context/1").bind(spec_of(symbols, 16, 0))
    payload = bound.encode(symbols)
    for size in range(len(payload)):
        with pytest.raises(CoderError):
            bound.decode(payload[:size])
    for extra in (b"\x00", b"\x00\x00", payload):
        with pytest.raises(CoderError):
            bound.decode(payload + extra)


@pytest.mark.parametrize("with_twin", [False, True])
@pytest.mark.parametrize(("levels", "wider"), [(200, 208), (600, 1000)])
def test_symbols_outside_the_alphabet_do_not_come_out(levels, wider, with_twin):
    # Both alphabets have the same digits, so only the symbols themselves show that the payload is for the other.
    symbols = smooth_symbols((3, 6, 6), wider)
    symbols[1, 2, 3] = wider - 1
    made, read = (SymbolSpec(symbols.shape, symbols.dtype, n, 0) for n in (wider, levels))
    payload = BoundContext(made, default_table(Geometry.of(made)), engine()).encode(symbols)
    with pytest.raises(CoderError):
        BoundContext(read, default_table(Geometry.of(read)), _twin if with_twin else engine()).decode(payload)


def test_the_wrong_table_is_refused_or_shows_in_the_symbols():
    symbols = smooth_symbols((4, 9, 9), 16)
    spec = spec_of(symbols, 16, 0)
    payload = BoundContext(spec, crooked_table(spec), engine()).encode(symbols)
    with pytest.raises(CoderError, match="another table"):
        by_label("context/1").bind(spec).decode(payload)


# -- tables ------------------------------------------------------------------------------------------------------------


@given(case=tensors(levels=(2, 5, 16, 256, 1000), max_side=6))
@settings(max_examples=25)
def test_a_trained_table_codes_anything_and_survives_its_stored_form(case):
    spec, symbols = case
    if not symbols.size:
        return
    bound = Context().bind(spec, train_table(spec, [symbols, np.minimum(symbols, 1)]))
    assert np.array_equal(bound.decode(bound.encode(symbols)), symbols)
    other = np.full(spec.shape, spec.levels - 1, spec.dtype)
    other.reshape(-1)[0] = 0
    assert np.array_equal(bound.decode(bound.encode(other)), other)


def test_training_is_worth_bytes():
    fainter = (np.arange(16) % 4)[:, None, None]
    frames = [smooth_symbols((16, 20, 20), 8, seed) >> fainter.astype(np.uint8) for seed in range(1, 6)]
    spec = spec_of(frames[0], 8, 0)
    trained, untrained = Context().bind(spec, train_table(spec, frames[1:])), Context().bind(spec)
    assert len(trained.encode(frames[0])) < len(untrained.encode(frames[0]))


def test_a_table_serves_another_size_of_an_open_axis():
    frames = [smooth_symbols((4, 20, 20), 8, seed) for seed in (1, 2)]
    table = train_table(spec_of(frames[0], 8, 0), frames)
    wider = smooth_symbols((4, 9, 33), 8)
    bound = Context().bind(spec_of(wider, 8, 0), table)
    assert np.array_equal(bound.decode(bound.encode(wider)), wider)


def test_tables_of_another_tensor_and_damaged_tables_are_refused():
    spec = SymbolSpec((4, 6, 6), np.dtype(np.uint8), 16, 0)
    stored = pack(Geometry.of(spec), crooked_table(spec))
    with pytest.raises(BundleError, match="4 channels"):
        Context().bind(SymbolSpec((5, 6, 6), np.dtype(np.uint8), 16, 0), stored)
    with pytest.raises(BundleError, match="below 16"):
        Context().bind(SymbolSpec((4, 6, 6), np.dtype(np.uint8), 8, 0), stored)
    for damaged in (b"", stored[:10], stored[:-3], b"\x63" + stored[1:], stored[:1] + b"\x09" + stored[2:]):
        with pytest.raises(BundleError):
            Context().bind(spec, damaged)


@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=200)
def test_a_table_with_one_byte_changed_is_refused_or_harmless(at, value):
    spec = SymbolSpec((4, 6, 6), np.dtype(np.uint8), 16, 0)
    stored = bytearray(pack(Geometry.of(spec), crooked_table(spec)))
    stored[at % len(stored)] = value
    try:
        bound = Context().bind(spec, bytes(stored))
    except BundleError:
        return
    symbols = smooth_symbols(spec.shape, 16)
    assert np.array_equal(bound.decode(bound.encode(symbols)), symbols)


def test_a_table_survives_its_stored_form():
    spec = SymbolSpec((5, 6, 6), np.dtype(np.uint8), 200, 0)
    geometry, table = Geometry.of(spec), crooked_table(spec)
    again = unpack(geometry, pack(geometry, table))
    for name in ("bins", "textures", "subs", "weights", "bias", "ref", "pad", "klass", "counts", "codes"):
        assert np.array_equal(getattr(again, name), getattr(table, name)), name


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_a_bound_coder_serves_many_threads():
    frames = [smooth_symbols((8, 24, 24), 16, seed) for seed in range(1, 5)]
    bound = by_label("context/1").bind(spec_of(frames[0], 16, 0))
    right = []

    def work(frame):
        right.append(all(np.array_equal(bound.decode(bound.encode(frame)), frame) for _ in range(20)))

    threads = [threading.Thread(target=work, args=(frame,)) for frame in frames]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * len(frames)


def test_the_estimate_is_near_the_truth():
    frames = [smooth_symbols((16, 24, 24), 16, seed) for seed in range(1, 6)]
    spec = spec_of(frames[0], 16, 0)
    for table in (None, train_table(spec, frames[1:])):
        bound = Context().bind(spec, table)
        assert bound.estimate_bytes(frames[0]) == pytest.approx(len(bound.encode(frames[0])), rel=0.15)


def test_coders_are_known_by_label_and_number():
    assert [by_number(n).name for n in (0, 1, 2)] == ["raw", "bitplane-zstd", "context"]
    assert labels()[0] == ("context/1" if has_kernel() else "bitplane-zstd/1")
    with pytest.raises(CoderError, match="unknown coder number 77"):
        by_number(77)


def test_a_trained_bottlenecks_small_frames_take_little_more_than_their_channels_entropy() -> None:
    """Symbols of two digits of which most are the same, and channels that have little in common."""
    rng = np.random.default_rng(0)
    spread = np.geomspace(2.0, 0.02, 48)[:, None, None]
    frames = np.clip(np.rint(rng.laplace(16, np.broadcast_to(spread, (260, 48, 5, 5)))), 0, 31).astype(np.uint8)
    spec = SymbolSpec(frames.shape[1:], np.dtype(np.uint8), 32, channel_axis=0)
    coder = by_label("context/1").bind(spec, train_table(spec, frames[:200]))
    coded = np.mean([len(coder.encode(frame)) for frame in frames[200:]])
    entropy = 0.0
    for channel in frames[200:].transpose(1, 0, 2, 3):
        share = np.bincount(channel.reshape(-1)) / channel.size
        entropy -= 25 / 8 * float((share[share > 0] * np.log2(share[share > 0])).sum())
    assert coded < 1.08 * entropy + 6
    assert all(np.array_equal(coder.decode(coder.encode(frame)), frame) for frame in frames[200:210])
