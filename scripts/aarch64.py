"""Does the codec's twin in Python write the same bytes on 64-bit Arm? Under qemu, without a board.

    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3-minimal bookworm SYSTEM
    for deb in SYSTEM/var/cache/apt/archives/*.deb; do dpkg-deb -x "$deb" ROOT; done
    python scripts/wheels.py --keep WHEELS --python 3.11
    python scripts/aarch64.py ROOT WHEELS/3.11

Runs the golden payloads of `tests/test_codec.py` through an aarch64 Python with aarch64 NumPy, zstandard and msgspec,
in qemu-user (Debian: qemu-user-static). ONNX Runtime's wheel is not tried: under qemu 7.2 its import ends in a
segmentation fault, whichever processor is emulated.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QEMU = "qemu-aarch64-static"
NEEDED = ("numpy", "zstandard", "msgspec")
CHECK = """
import ast, hashlib, platform, sys
import numpy as np
from codec_cases import crooked_table, smooth_symbols, spec_of
from narrows.runtime.codec import _twin
from narrows.runtime.codec.context import BoundContext
from narrows.runtime.codec.model import Geometry, default_table
tree = ast.parse(open(sys.argv[1]).read())
golden = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "GOLDEN")
good = 0
for (levels, tabled), expected in golden.items():
    symbols = smooth_symbols((6, 17, 19), levels)
    spec = spec_of(symbols, levels, 0)
    table = crooked_table(spec) if tabled else default_table(Geometry.of(spec))
    bound = BoundContext(spec, table, _twin)
    payload = bound.encode(symbols)
    same = (len(payload), hashlib.sha256(payload).hexdigest()[:16]) == expected
    good += same and np.array_equal(bound.decode(payload), symbols)
print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}: "
      f"{good} of {len(golden)} golden payloads are the same bytes, and decoded")
sys.exit(good != len(golden))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="an unpacked aarch64 system with Python 3.11 or later")
    parser.add_argument("wheels", type=Path, help="a folder with the wheels for that Python")
    options = parser.parse_args()
    if shutil.which(QEMU) is None:
        sys.exit(f"{QEMU} is not here; Debian: apt install qemu-user-static")
    pythons = sorted((options.root / "usr/bin").glob("python3.[0-9]*"))
    if not pythons:
        sys.exit(f"there is no Python in {options.root}/usr/bin")
    with tempfile.TemporaryDirectory() as name:
        site = Path(name) / "site"
        for needed in NEEDED:
            for wheel in options.wheels.glob(f"{needed}-*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(site)
        (Path(name) / "narrows").symlink_to(ROOT)
        paths = os.pathsep.join(map(str, (site, name, ROOT / "tests")))
        environment = {**os.environ, "PYTHONHOME": str(options.root / "usr"), "PYTHONPATH": paths}
        command = [QEMU, "-L", str(options.root), str(pythons[-1]), "-c", CHECK, str(ROOT / "tests/test_codec.py")]
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
