"""The device's install, in an environment of its own: no torch, no onnx, and it works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "cv2", "sklearn")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with `pip install narrows` and nothing else."""
    folder = tmp_path_factory.mktemp("device")
    tree = folder / "source"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "*.so"))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Whoever runs the tests has built the kernel; once more would take the compiler half a minute.
    environment = {**os.environ, "CC": "/bin/false"}
    subprocess.run([*install, "--constraint", tree / "constraints.txt", tree], check=True, cwd=folder, env=environment)
    return python


def ask(python: Path, *arguments: str, code: int = 0) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=python.parent
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_nothing_heavy_comes_along(python: Path) -> None:
    check = f"import importlib.util as u; print([m for m in {HEAVY} if u.find_spec(m)])"
    assert ask(python, "-c", check).strip() == "[]"


def test_importing_it_loads_next_to_nothing(python: Path) -> None:
    loaded = ask(python, "-c", "import narrows, sys; print(*sorted(m.partition('.')[0] for m in sys.modules))").split()
    assert not {"numpy", "grpc", "onnxruntime", "typer", "PIL"} & set(loaded)


def test_the_public_names_are_there(python: Path) -> None:
    names = "import narrows; print(*(getattr(narrows, n) and n for n in narrows.__all__))"
    assert ask(python, "-c", names).split() == [
        "Bundle",
        "Device",
        "DeviceOptions",
        "Half",
        "NarrowsError",
        "Outcome",
        "__version__",
    ]


def test_the_doctor_finds_a_device_well(python: Path) -> None:
    findings = json.loads(ask(python, "-m", "narrows", "doctor", "--json"))
    assert not [f for f in findings if f["ok"] is False]
    assert {f["what"]: f["found"] for f in findings}["partitioner: torch"] == "not installed"


@pytest.mark.parametrize(
    ("verb", "missing"),
    [
        (("cuts", "model.onnx"), "narrows[partition]"),
        (("serve", "bundles"), "narrows[server]"),
        (("demo",), "narrows[demo]"),
    ],
)
def test_a_verb_whose_extra_is_missing_says_so(python: Path, verb: tuple[str, ...], missing: str) -> None:
    done = subprocess.run([python, "-m", "narrows", *verb], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
