"""Stream pictures through a head here and a tail on a server, and keep what is seen.

python examples/stream.py bundles/resnet 127.0.0.1:8470 photos/
"""

import sys
from collections import Counter

import narrows


def main(bundle: str, server: str, pictures: str) -> None:
    seen: Counter[str] = Counter()
    with narrows.Device(bundle, server) as device:
        for outcome in device.stream(pictures):
            if outcome.error is not None:
                print(f"{outcome.source}: {outcome.error}", file=sys.stderr)
                continue
            best = outcome.top[0]
            name = best.label or str(best.index)
            seen[name] += 1
            print(f"{outcome.source}: {name}, {outcome.wire_bytes} bytes, {outcome.ms['total']:.1f} ms")
    print(seen.most_common())


if __name__ == "__main__":
    main(*sys.argv[1:])
