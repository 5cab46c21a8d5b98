"""Is there an aarch64 wheel of everything that the device's install needs, for every Python that is supported?

    python scripts/wheels.py [--keep FOLDER] [--python 3.11] [--json]

Asks pip: for each requirement of the device install, and what those need in turn (as the wheels themselves say), a
wheel for 64-bit Arm and glibc 2.28 or older (Raspberry Pi OS from Bookworm on, JetPack 6, Ubuntu 20.04 and later). What
is written in Python alone counts wherever it runs. `--keep` leaves the wheels in a folder for each Python, as
`narrows deploy --find-links` takes them. Exits with 1 where a wheel is missing.
"""

from __future__ import annotations

import argparse
import email
import json
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
MACHINE = {"platform_machine": "aarch64", "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}


def project() -> tuple[list[Requirement], list[str]]:
    """What the device's install requires, and the Pythons that are supported, from pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        told = tomllib.load(stream)["project"]
    marks = [c.rpartition(" ")[2] for c in told["classifiers"] if c.startswith("Programming Language :: Python :: 3.")]
    return [Requirement(text) for text in told["dependencies"]], marks


def fetch(requirement: Requirement, python: str, folder: Path) -> Path | str:
    """The wheel, or pip's last word on why there is none."""
    before = set(folder.glob("*.whl"))
    plain = Requirement(f"{requirement.name}{requirement.specifier}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--dest", str(folder), str(plain)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return (lines or ["ERROR: no word"])[-1].removeprefix("ERROR: ")
    made = set(folder.glob("*.whl")) - before
    if made:
        return made.pop()
    name = canonicalize_name(requirement.name).replace("-", "_")
    return next(w for w in before if canonicalize_name(w.name.partition("-")[0]).replace("-", "_") == name)


def needs(wheel: Path, python: str) -> list[Requirement]:
    """What a wheel requires there, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    there = {**MACHINE, "python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    wanted = [Requirement(text) for text in told]
    return [one for one in wanted if one.marker is None or one.marker.evaluate(there)]


def survey(python: str, folder: Path) -> list[dict[str, Any]]:
    """Every distribution with its wheel, breadth first."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, seen, rows = list(project()[0]), set[str](), list[dict[str, Any]]()
    while waiting:
        one = waiting.pop(0)
        name = canonicalize_name(one.name)
        if name in seen:
            continue
        seen.add(name)
        found = fetch(one, python, folder)
        there = isinstance(found, Path)
        tags = "-".join(found.stem.split("-")[2:]) if isinstance(found, Path) else str(found)
        size = found.stat().st_size / 1e6 if isinstance(found, Path) else 0.0
        rows.append({"python": python, "distribution": name, "wheel": there, "tags": tags, "MB": round(size, 1)})
        waiting += needs(found, python) if isinstance(found, Path) else []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder that the wheels stay in")
    parser.add_argument("--python", action="append", help="of these Pythons alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    pythons = options.python or project()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        rows = [row for python in pythons for row in survey(python, folder / python)]
    missing = [row for row in rows if not row["wheel"]]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("distribution", *pythons):
            table.add_column(column, overflow="fold")
        for name in dict.fromkeys(str(row["distribution"]) for row in rows):
            by_python = {row["python"]: row for row in rows if row["distribution"] == name}
            cells = [by_python.get(p) for p in pythons]
            table.add_row(
                str(name),
                *("not needed" if c is None else f"{'' if c['wheel'] else 'NONE '}{c['tags']}" for c in cells),
            )
        console = Console(width=200)
        console.print(table)
        console.print(f"{len(missing)} missing of {len(rows)}")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
