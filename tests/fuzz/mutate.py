"""A million mutated and truncated frames: `python tests/fuzz/mutate.py [--count 1000000] [--seed 0] [--corpus FOLDER]`.

No coverage, only speed: every outcome must be a refusal or symbols that can be coded again, and memory must not grow.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz.targets import run_one, seeds


def mutated(data: bytes, dice: random.Random) -> bytes:
    """`data` with a few bytes changed, cut out, doubled or put in, or cut short."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
        at, kind = dice.randrange(len(out) + 1), dice.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << dice.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + dice.randrange(1, 9)]
        elif kind == 4:
            out[at:at] = dice.randbytes(dice.randrange(1, 9))
        else:
            out[at:at] = out[at : at + dice.randrange(1, 33)]
    return bytes(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, help="folder of further inputs to start from")
    args = parser.parse_args()
    dice, start = random.Random(args.seed), list(seeds().values())
    if args.corpus:
        start += [path.read_bytes() for path in sorted(args.corpus.iterdir())]
    accepted, slowest, begun = 0, 0.0, time.monotonic()
    memory = None
    for i in range(args.count):
        data = mutated(dice.choice(start), dice)
        t0 = time.monotonic()
        accepted += run_one(data)
        slowest = max(slowest, time.monotonic() - t0)
        if i == args.count // 10:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - (memory or 0)
    print(
        f"{args.count} inputs in {time.monotonic() - begun:.0f} s: {accepted} accepted, the others refused; "
        f"slowest {1e3 * slowest:.1f} ms; memory grew by {grown} KiB over the last nine tenths"
    )


if __name__ == "__main__":
    main()
