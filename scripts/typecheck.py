"""Run mypy over the package.

The repository's root is the package, whatever the folder is called, and mypy knows a package by its folder's name: it
gets to see the root through a link called `narrows`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    view = ROOT / "build" / "types"
    view.mkdir(parents=True, exist_ok=True)
    link = view / "narrows"
    if not link.is_symlink():
        link.symlink_to(ROOT, target_is_directory=True)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "narrows"]
    return subprocess.run(command, cwd=view, env={**os.environ, "MYPYPATH": str(view)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
