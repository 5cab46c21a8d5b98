"""An installation without a compiler: it works, says so, and reads and writes the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from codec_cases import smooth_symbols, spec_of
from narrows.runtime.codec import by_label

ROOT = Path(__file__).resolve().parent.parent

CODE = """
import sys
import numpy as np
from narrows.runtime.codec import SymbolSpec, by_label, kernel_status, labels
symbols = np.load(sys.argv[1])
bound = by_label("context/1").bind(SymbolSpec(symbols.shape, symbols.dtype, 16, 0))
payload = bound.encode(symbols)
assert np.array_equal(bound.decode(payload), symbols)
print(kernel_status().split("(")[0].strip(), labels()[0], payload.hex(), sep="|")
"""


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a wheel installs, built where the compiler always fails."""
    folder = tmp_path_factory.mktemp("no-compiler")
    tree = folder / "source"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "*.so"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, tree]
    environment = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pytest.importorskip("setuptools", "77", reason="building a wheel here needs setuptools 77")
    subprocess.run(command, check=True, env=environment, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


@pytest.mark.timeout(300)
def test_the_twin_serves_and_writes_the_same_bytes(without_compiler: Path, tmp_path: Path) -> None:
    assert not list(without_compiler.rglob("_kernel*.so"))
    symbols = smooth_symbols((4, 9, 11), 16)
    (tmp_path / "use.py").write_text(CODE)
    with (tmp_path / "symbols.npy").open("wb") as stream:
        np.save(stream, symbols)
    environment = {**os.environ, "PYTHONPATH": str(without_compiler)}
    command = [sys.executable, tmp_path / "use.py", tmp_path / "symbols.npy"]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True, cwd=tmp_path)
    status, first, payload = done.stdout.strip().split("|")
    assert (status, first) == ("pure Python twin", "bitplane-zstd/1")
    assert bytes.fromhex(payload) == by_label("context/1").bind(spec_of(symbols, 16, 0)).encode(symbols)
