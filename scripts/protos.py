"""Generate protos/*_pb2* from protos/*.proto; with --check, fail where what is checked in is stale."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def generate(out: Path) -> list[Path]:
    """Run protoc into `out`; the files it wrote.

    The virtual path `narrows/protos` gives the generated code its right import path without any patching.
    """
    names = [f"narrows/protos/{path.name}" for path in sorted(PROTOS.glob("*.proto"))]
    outs = [f"--{plugin}_out={out}" for plugin in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-Inarrows/protos={PROTOS}", *outs, *names]
    subprocess.run(command, check=True)
    return sorted((out / "narrows" / "protos").iterdir())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where something is stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        stale = []
        for made in generate(Path(folder)):
            kept = PROTOS / made.name
            if not kept.is_file() or kept.read_bytes() != made.read_bytes():
                stale.append(kept.name)
                if not check:
                    kept.write_bytes(made.read_bytes())
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}{'; run make protos' if check else ''}")
    return int(bool(stale) and check)


if __name__ == "__main__":
    sys.exit(main())
