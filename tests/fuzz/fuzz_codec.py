"""Coverage-guided fuzzing of the decoder, the tables and the twin; `fuzz.sh` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["narrows.runtime.codec"]):
    from fuzz.targets import run_one, twins_agree


def one(data: bytes) -> None:
    """The twin runs too: the kernel's branches are its branches, and there they are seen."""
    run_one(data)
    if data[:1] >= b"\x10" and len(data) < 200:
        twins_agree(data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
