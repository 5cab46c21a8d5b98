"""Everything the fuzzers ever found worth keeping, replayed; and a few thousand fresh mutations."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz.mutate import mutated
from fuzz.targets import run_one, seeds, twins_agree
from narrows.runtime.codec.context import has_kernel

CORPUS = Path(__file__).parent / "fuzz" / "corpus"


def test_the_corpus_is_there_and_small():
    files = list(CORPUS.iterdir())
    assert len(files) > 50
    assert sum(path.stat().st_size for path in files) < 1_000_000


def test_every_input_of_the_corpus_is_refused_or_symbols():
    for path in sorted(CORPUS.iterdir()):
        data = path.read_bytes()
        run_one(data)
        if has_kernel() and data[:1] >= b"\x10" and len(data) < 120:
            twins_agree(data[1:])


def test_every_seed_is_accepted():
    for name, data in seeds().items():
        assert run_one(data), name


@pytest.mark.parametrize("name", seeds())
def test_mutations_are_refused_or_symbols(name):
    dice, data = random.Random(name), seeds()[name]
    for _ in range(200 if has_kernel() else 10):
        run_one(mutated(data, dice))
