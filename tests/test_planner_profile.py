"""Profiles as files: what is written is read again, and what is no profile is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from narrows.planner.profile import MAX_BYTES, SCHEMA, parse, read, write
from narrows.runtime.errors import ProfileError
from plan_profiles import usual


def changed(**facts: object) -> bytes:
    return json.dumps({**json.loads(write(usual())), **facts}).encode()


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_bytes(write(usual()))
    assert read(path) == usual()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "no JSON object"),
        (b"[1, 2]", "no JSON object"),
        (b"\xff\xfe", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b"{}", "schema None"),
        (changed(schema=SCHEMA - 1), f"schema {SCHEMA - 1}; this release reads {SCHEMA}. Profile again"),
        (changed(schema="1"), "schema '1'"),
        (changed(cuts=None), "no profile that narrows writes"),
        (changed(digest="none"), "no profile that narrows writes"),
        (changed(frames=-1), "no profile that narrows writes"),
        (changed(cuts=2 * json.loads(write(usual()))["cuts"]), "names a cut twice"),
        (changed(cuts=[{"name": "c", "elements": 1, "qualities": []}]), "has no quality"),
        (changed(reply_bytes=-1), "no profile that narrows writes"),
        (write(usual()).replace(b'"fixed_ms": 1.0', b'"fixed_ms": 1e999'), "no"),
    ],
)
def test_what_is_no_profile_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        parse(text, "board.json")


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        read(tmp_path / "none.json")
    with pytest.raises(ProfileError, match="cannot be read"):
        read(tmp_path)
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ProfileError, match="at most"):
        read(large)


@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    text = bytearray(write(usual()))
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        profile = parse(bytes(text), "damaged")
    except ProfileError:
        return
    assert math.isfinite(profile.reply_bytes)
