"""What the README and the docs tell people to type exists, and the Python in it runs."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from narrows.server import ServeOptions, ServerThread
from PIL import Image
from processes import narrows

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> set[tuple[str, ...]]:
    """Every `narrows …` in a block of the pages, as words."""
    found = set()
    for page in PAGES:
        for block in blocks(page, "(?:sh|bash|console)?"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("narrows "):
                    found.add(tuple(shlex.split(line.partition("#")[0])))
    return found


def test_every_command_of_the_pages_exists() -> None:
    verbs = {words[1] for words in commands() if not words[1].startswith("-")}
    helps = {
        verb: subprocess.run([*narrows(verb, "--help")], capture_output=True, text=True, check=True).stdout
        for verb in verbs
    }
    assert verbs >= {"cut", "cuts", "serve", "run", "doctor"}
    for words in commands():
        for word in words[2:]:
            if word.startswith("--"):
                assert f"{word.partition('=')[0]} " in f"{helps[words[1]]} ", f"{' '.join(words)}: no {word}"


def test_every_verb_is_in_the_readme_and_has_an_example() -> None:
    overview = subprocess.run(narrows("--help"), capture_output=True, text=True, check=True).stdout
    verbs = re.findall(r"^  ([a-z]+)  ", overview.partition("Commands:")[2], re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    for verb in verbs:
        assert f"`narrows {verb}" in readme, f"the README does not know {verb}"
        text = subprocess.run(narrows(verb, "--help"), capture_output=True, text=True, check=True).stdout
        assert f"Example: narrows {verb}" in text


def test_the_python_of_the_readme_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    (code,) = blocks(ROOT / "README.md", "python")
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        exec(
            code.replace("bundles/resnet", str(bundle.root)).replace("server:8470", server.address),
            {"frames": pictures(3)},
        )
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    (tmp_path / "photos").mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "photos" / "a.png")
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        monkeypatch.setattr(sys, "argv", ["stream.py", str(bundle.root), server.address, str(tmp_path / "photos")])
        runpy.run_path(str(ROOT / "examples" / "stream.py"), run_name="__main__")
    assert "a.png: class" in capsys.readouterr().out
