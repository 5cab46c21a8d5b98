"""`_kernel.c` in Python: the same functions, the same bytes, for an installation without a compiler.

What depends on nothing but known symbols is done by NumPy for whole channels (all contexts of an encoder); what waits
for the last digit (distributions that adapt, a decoder's contexts) is plain integers. See the kernel for the comments
that both share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Symbols
from .model import CAUSAL, DIGIT, LANES, LUT_BITS, MEAN_BITS, ONE, PROBABILITY_BITS, STATES, WEIGHT_BITS

_LOW = 1 << 16
_SETTLING = 2
_LUT_LAST = (1 << LUT_BITS) - 1
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Model:
    """The kernel's `Model` and `Shape`, out of what it is given."""

    arrays: tuple[NDArray[Any], ...]
    channels: int
    rows: int
    cols: int
    levels: int
    bits: int
    centre: int
    refs: int
    subs: int
    states: int
    adaptation: int
    first: int

    @property
    def wide(self) -> bool:
        return self.bits > 8

    @property
    def low_bits(self) -> int:
        return 0 if self.wide else max(0, self.bits - 4)

    @property
    def two_digits(self) -> bool:
        return self.wide or self.low_bits > 0

    @property
    def shift(self) -> int:
        return WEIGHT_BITS + (4 if self.wide else self.bits) - LUT_BITS

    @property
    def alphabet(self) -> int:
        return self.bits if self.wide else ((self.levels - 1) >> self.low_bits) + 1

    @property
    def low_alphabet(self) -> int:
        return DIGIT if self.wide else 1 << self.low_bits

    def groups(self) -> Iterator[range]:
        """Channels that are coded in step."""
        for c in range(0, self.channels, LANES):
            yield range(c, min(c + LANES, self.channels))

    def base(self, c: int, planes: Ints) -> Ints:
        """int64 [rows, cols]: what the earlier channels among `planes` [channels, rows, cols] say about channel `c`."""
        bias, weights, ref = self.arrays[:3]
        out = np.full((self.rows, self.cols), int(bias[c]), np.int64)
        for r in range(self.refs):
            same, around = (int(w) for w in weights[c, CAUSAL + 2 * r : CAUSAL + 2 * r + 2])
            p = np.pad(planes[ref[c, r]], 1, mode="edge")
            out += same * p[1:-1, 1:-1] + around * (p[1:-1, :-2] + p[1:-1, 2:] + p[:-2, 1:-1] + p[2:, 1:-1])
        return out

    def mean(self, c: int, y: int, total: int) -> int:
        """The weighted mean of a channel's first `y` rows, whose symbols add up to `total`."""
        inverse = (1 << 32) // (y * self.cols) if y else 0
        mean = (total << MEAN_BITS) * inverse >> 32 if y else int(self.arrays[3][c]) << MEAN_BITS
        return (int(self.arrays[1][c, 4]) * mean) >> MEAN_BITS

    def places(self, c: int, planes: Ints) -> tuple[Ints, Ints]:
        """First contexts and parts of second contexts, int64 [rows, cols] each, of a channel that is known."""
        _, weights, _, pad, offset, context, texture, sub = self.arrays[:8]
        x, w = planes[c], weights[c].astype(np.int64)
        left, up = np.empty_like(x), np.empty_like(x)
        left[:, 1:] = x[:, :-1]
        left[1:, 0], left[0, 0] = x[:-1, 0], pad[c]
        up[0], up[1:] = left[0], x[:-1]
        up_left = np.column_stack([up[:, :1], up[:, :-1]])
        up_right = np.column_stack([up[:, 1:], up[:, -1:]])
        up_left[0] = up_right[0] = left[0]
        totals = np.concatenate([[0], np.cumsum(x.sum(axis=1))])
        means = np.array([self.mean(c, y, int(totals[y])) for y in range(self.rows)])
        s = self.base(c, planes) + means[:, None] + w[0] * left + w[1] * up + w[2] * up_left + w[3] * up_right
        predicted = np.clip(s >> self.shift, 0, _LUT_LAST)
        rough = np.abs(left - up) + np.abs(up - up_left)
        part = np.searchsorted(texture, rough, side="right")
        return int(offset[c]) + context[part, predicted].astype(np.int64), sub[predicted].astype(np.int64)

    def fold(self, symbols: Symbols) -> Ints:
        modulus = 1 << self.bits
        away = (symbols.astype(np.int64) - self.centre) % modulus
        return np.where(away >= modulus >> 1, 2 * (modulus - away) - 1, 2 * away)

    def unfold(self, folded: int) -> int:
        away = -((folded + 1) >> 1) if folded & 1 else folded >> 1
        return (away + self.centre) & ((1 << self.bits) - 1)

    def seen(self, symbols: Symbols) -> Ints:
        """What contexts see of symbols."""
        if not self.wide:
            return symbols.astype(np.int64)
        return _lengths(self.fold(symbols))


def _lengths(folded: Ints) -> Ints:
    """0 for 0 and 1, else the place of the highest bit."""
    return sum(((folded >> n) > 0).astype(np.int64) for n in range(1, 17))  # type: ignore[return-value]


class _Distributions:
    """Cumulative frequencies that adapt: the kernel's `cdf`, `counts` and `adapt`."""

    def __init__(self, m: _Model) -> None:
        starts = m.arrays[8].astype(np.int64) + ONE
        self.ends = [[*row[1:], ONE] for row in starts.tolist()]
        self.counts = m.arrays[9].tolist() if m.adaptation == _SETTLING else [255] * len(m.arrays[9])
        self.rates = m.arrays[10].tolist() if m.adaptation else None
        self.targets = {n: self._targets(n) for n in (m.alphabet, m.low_alphabet)}

    @staticmethod
    def _targets(alphabet: int) -> list[list[int]]:
        return [
            [i + 1 if i + 1 <= digit else ONE - alphabet + i + 1 for i in range(alphabet - 1)] for digit in range(DIGIT)
        ]

    def interval(self, context: int, digit: int) -> tuple[int, int]:
        """Start and frequency of `digit`."""
        ends = self.ends[context]
        start = ends[digit - 1] if digit else 0
        return start, ends[digit] - start

    def find(self, context: int, slot: int) -> int:
        for digit, end in enumerate(self.ends[context]):
            if end > slot:
                return digit
        raise AssertionError("the last interval ends at ONE")

    def adapt(self, context: int, digit: int, alphabet: int) -> None:
        if self.rates is None:
            return
        n, ends = self.counts[context], self.ends[context]
        rate = self.rates[n]
        self.counts[context] = min(n + 1, 255)
        for i, target in enumerate(self.targets[alphabet][digit]):
            ends[i] += (target - ends[i]) * rate >> 16


Operation = tuple[int, int, int]
"""Start, frequency and coder state of one step."""


def encode(numbers: tuple[int, ...], arrays: tuple[NDArray[Any], ...], symbols: Symbols, capacity: int) -> bytes | None:
    """`symbols` [channels, rows, cols] as states and words; None past `capacity` bytes.

    Raises:
        ValueError: a symbol is outside the alphabet.
    """
    m = _Model(arrays, *numbers)
    return _words(m, list(_operations(m, _checked(m, symbols))), capacity)


def _checked(m: _Model, symbols: Symbols) -> Symbols:
    if int(symbols.max()) >= m.levels:
        raise ValueError("a symbol is outside the alphabet")
    return symbols.reshape(m.channels, m.rows, m.cols)


def _operations(m: _Model, symbols: Symbols) -> Iterator[Operation]:
    planes, distributions = m.seen(symbols), _Distributions(m)
    for group in m.groups():
        streams = [_digits(m, c, planes, symbols) for c in group]
        for at in range(m.rows * m.cols):
            # First the first digit of each lane, then what is left of each.
            digits = [(lane, digit) for lane, stream in enumerate(streams) for digit in stream[at][:1]]
            digits += [(lane, digit) for lane, stream in enumerate(streams) for digit in stream[at][1:]]
            for lane, (context, digit, alphabet) in digits:
                state = lane & (m.states - 1)
                if context < 0:  # `alphabet` bits as they are
                    yield digit << (PROBABILITY_BITS - alphabet), 1 << (PROBABILITY_BITS - alphabet), state
                    continue
                yield *distributions.interval(context, digit), state
                distributions.adapt(context, digit, alphabet)


def _digits(m: _Model, c: int, planes: Ints, symbols: Symbols) -> list[list[tuple[int, int, int]]]:
    """Of every symbol of channel `c`: (context, digit, alphabet) of each digit; context -1 marks plain bits."""
    contexts, subs = (a.reshape(-1).tolist() for a in m.places(c, planes))
    seen = planes[c].reshape(-1).tolist()
    if not m.two_digits:
        return [[(context, digit, m.alphabet)] for context, digit in zip(contexts, seen, strict=True)]
    if not m.wide:
        low, mask = m.low_bits, (1 << m.low_bits) - 1
        return [
            [(context, v >> low, m.alphabet), (m.first + (v >> low) * m.subs + sub, v & mask, m.low_alphabet)]
            for context, sub, v in zip(contexts, subs, seen, strict=True)
        ]
    folded = m.fold(symbols[c]).reshape(-1).tolist()
    return [_wide_digits(m, *one) for one in zip(contexts, subs, seen, folded, strict=True)]


def _wide_digits(m: _Model, context: int, sub: int, length: int, folded: int) -> list[tuple[int, int, int]]:
    rest, raw = folded - (1 << length) if length else folded, max(0, length - 4)
    digits = [(context, length, m.alphabet), (m.first + length * m.subs + sub, rest >> raw, m.low_alphabet)]
    return [*digits, (-1, rest & ((1 << raw) - 1), raw)] if raw else digits


def _words(m: _Model, operations: list[Operation], capacity: int) -> bytes | None:
    states, words, room = [_LOW] * STATES, [], capacity - 4 * m.states
    for start, frequency, lane in reversed(operations):
        x = states[lane]
        if x >> (32 - PROBABILITY_BITS) >= frequency:
            words.append(x & 0xFFFF)
            x >>= 16
        q, rest = divmod(x, frequency)
        states[lane] = (q << PROBABILITY_BITS) + rest + start
    if 2 * len(words) > room:
        return None
    return np.array(states[: m.states], "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()


class _DamagedError(Exception):
    """The payload is none that the encoder could have made."""


class _Reader:
    """Coder states and the words that refill them."""

    def __init__(self, m: _Model, payload: bytes) -> None:
        if len(payload) < 4 * m.states or len(payload) % 2:
            raise _DamagedError
        self.states = np.frombuffer(payload, "<u4", m.states).tolist() + [_LOW] * (STATES - m.states)
        self.words = np.frombuffer(payload, "<u2", offset=4 * m.states).tolist()
        self.next = 0
        if min(self.states) < _LOW:
            raise _DamagedError

    def advance(self, lane: int, start: int, frequency: int) -> None:
        x = self.states[lane]
        x = frequency * (x >> PROBABILITY_BITS) + (x & (ONE - 1)) - start
        if x < _LOW:
            if self.next == len(self.words):
                raise _DamagedError
            x = x << 16 | self.words[self.next]
            self.next += 1
        self.states[lane] = x

    def digit(self, d: _Distributions, lane: int, context: int, alphabet: int) -> int:
        digit = d.find(context, self.states[lane] & (ONE - 1))
        self.advance(lane, *d.interval(context, digit))
        d.adapt(context, digit, alphabet)
        return digit

    def bits(self, lane: int, n: int) -> int:
        value: int = (self.states[lane] & (ONE - 1)) >> (PROBABILITY_BITS - n)
        self.advance(lane, value << (PROBABILITY_BITS - n), 1 << (PROBABILITY_BITS - n))
        return value

    @property
    def whole(self) -> bool:
        return self.next == len(self.words) and self.states == [_LOW] * STATES


def decode(
    numbers: tuple[int, ...], arrays: tuple[NDArray[Any], ...], payload: bytes | memoryview, symbols: Symbols
) -> bool:
    """Fill `symbols` [channels, rows, cols]; False where the payload is none that `encode` could have made."""
    m = _Model(arrays, *numbers)
    planes = np.zeros((m.channels, m.rows, m.cols), np.int64)
    flat = symbols.reshape(m.channels, m.rows, m.cols)
    distributions = _Distributions(m)
    luts = [a.tolist() for a in arrays[5:8]]
    try:
        reader = _Reader(m, bytes(payload))
        for group in m.groups():
            lanes = [_Lane(m, c, planes, luts) for c in group]
            for y in range(m.rows):
                for x in range(m.cols):
                    places = [lane.place(y, x) for lane in lanes]
                    first = [
                        reader.digit(distributions, i & (m.states - 1), context, m.alphabet)
                        for i, (context, _) in enumerate(places)
                    ]
                    for i, lane in enumerate(lanes):
                        state = i & (m.states - 1)
                        seen, symbol = _symbol(m, reader, distributions, state, first[i], places[i][1])
                        lane.rows[y].append(seen)
                        flat[lane.c, y, x] = symbol
            for lane in lanes:
                planes[lane.c] = lane.rows
    except _DamagedError:
        return False
    return reader.whole


def _symbol(m: _Model, r: _Reader, d: _Distributions, lane: int, high: int, sub: int) -> tuple[int, int]:
    """What contexts see of the next symbol, and the symbol, whose first digit is `high`."""
    if not m.two_digits:
        return high, high
    low = r.digit(d, lane, m.first + high * m.subs + sub, m.low_alphabet)
    if not m.wide:
        symbol = high << m.low_bits | low
        if symbol >= m.levels:
            raise _DamagedError
        return symbol, symbol
    raw = max(0, high - 4)
    rest = low << raw | r.bits(lane, raw) if raw else low
    symbol = m.unfold((1 << high if high else 0) + rest)
    if rest >> max(high, 1) or symbol >= m.levels:
        raise _DamagedError
    return high, symbol


class _Lane:
    """One channel while it is decoded."""

    def __init__(self, m: _Model, c: int, planes: Ints, luts: list[Any]) -> None:
        self.m, self.c = m, c
        self.base = m.base(c, planes).tolist()
        self.rows: list[list[int]] = [[] for _ in range(m.rows)]
        self.weights = m.arrays[1][c].tolist()
        self.pad, self.offset = int(m.arrays[3][c]), int(m.arrays[4][c])
        self.context, self.texture, self.sub = luts
        self.total = self.mean = 0

    def place(self, y: int, x: int) -> tuple[int, int]:
        m, w, row = self.m, self.weights, self.rows[y]
        if x == 0:
            self.total += sum(self.rows[y - 1]) if y else 0
            self.mean = m.mean(self.c, y, self.total)
        if y:
            above = self.rows[y - 1]
            left = row[x - 1] if x else above[0]
            up, up_left, up_right = above[x], above[max(x - 1, 0)], above[min(x + 1, m.cols - 1)]
        else:
            left = up = up_left = up_right = row[x - 1] if x else self.pad
        s = self.base[y][x] + self.mean + w[0] * left + w[1] * up + w[2] * up_left + w[3] * up_right
        predicted = min(max(s >> m.shift, 0), _LUT_LAST)
        rough = abs(left - up) + abs(up - up_left)
        return self.offset + self.context[bisect_right(self.texture, rough)][predicted], self.sub[predicted]


def tally(
    numbers: tuple[int, ...], arrays: tuple[NDArray[Any], ...], symbols: Symbols, step: int, counts: NDArray[np.uint32]
) -> None:
    """Add the digits of every `step`-th group of channels to `counts`, uint32 [contexts, 16].

    Raises:
        ValueError: a symbol is outside the alphabet.
    """
    m = _Model(arrays, *numbers)
    symbols = _checked(m, symbols)
    planes = m.seen(symbols)
    for c in (c for group in list(m.groups())[::step] for c in group):
        digits = [d for one in _digits(m, c, planes, symbols) for d in one if d[0] >= 0]
        np.add.at(counts, ([d[0] for d in digits], [d[1] for d in digits]), 1)
