"""`narrows profile` and `narrows plan` as they are typed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import make_bundle
from narrows.cli import app
from narrows.planner.profile import read, write
from narrows.runtime.errors import PlanError, ProfileError, UsageError
from plan_profiles import profile, usual
from typer.testing import CliRunner, Result


def run(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "board.json"
    path.write_bytes(write(usual()))
    return path


def test_a_bundle_is_profiled(tmp_path: Path) -> None:
    make_bundle(tmp_path / "tiny")
    out = tmp_path / "new" / "profile.json"
    said = run("profile", tmp_path / "tiny", "-o", out, "--no-memory", "--name", "desk").output
    assert "features" in said
    assert "no bundle carries the whole model" in said
    assert read(out).machine.name == "desk"


def test_a_plan_says_what_to_do_and_why(board: Path) -> None:
    words = ("plan", board, "--link", "5mbit,rtt=40ms", "--max-accuracy-drop", 1, "--deadline-ms", 95)
    said = run(*words).output
    assert "5 Mbit/s, 40 ms round trip: split at late, quality 1" in said
    assert "the fastest of each way" in said
    (made,) = json.loads(run(*words, "--json").output)
    assert made["plans"][0]["best"]["name"] == "split at late, quality 1"
    assert made["plans"][0]["feasible"]


def test_delays_are_one_way_unless_said_otherwise(board: Path) -> None:
    one_way = json.loads(run("plan", board, "--link", "5mbit,20ms", "--json").output)
    round_trip = json.loads(run("plan", board, "--link", "5mbit,rtt=40ms", "--json").output)
    assert one_way[0]["plans"] == round_trip[0]["plans"]


def test_json_has_no_infinity(board: Path) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    said = run("plan", board, "--link", "0ms", "--json", "--p99-ms", 500).output
    (made,) = json.loads(said, parse_constant=refuse)
    assert made["plans"][0]["link"]["bps"] is None


def test_do_not_split(board: Path) -> None:
    assert "do not split" in run("plan", board, "--link", "20kbit,500ms").output


def test_a_link_of_zero_bandwidth(board: Path, tmp_path: Path) -> None:
    said = run("plan", board, "--link", "0bit").output
    assert "nothing passes: local" in said
    blind = tmp_path / "blind.json"
    blind.write_bytes(write(profile(local_ms=None)))
    with pytest.raises(PlanError, match="nothing passes the link"):
        run("plan", blind, "--link", "0bit")


def test_bounds_that_nobody_can_meet_show_the_nearest_miss(board: Path) -> None:
    said = run("plan", board, "--link", "5mbit,rtt=40ms", "--deadline-ms", 5).output
    assert "no point keeps every bound; this is the nearest miss" in said
    assert "5 allowed" in said


def test_profiles_that_do_not_fit(board: Path, tmp_path: Path) -> None:
    other, old = tmp_path / "other.json", tmp_path / "old.json"
    other.write_bytes(write(profile(digest="1" * 64, name="rack")))
    old.write_bytes(write(usual()).replace(b'"schema": 1', b'"schema": 0'))
    with pytest.raises(ProfileError, match="one model on both"):
        run("plan", board, other, "--link", "1mbit")
    with pytest.raises(ProfileError, match="Profile again"):
        run("plan", old, "--link", "1mbit")


def test_links_and_mixes_that_are_none(board: Path) -> None:
    for link in ("fast", "trace:file", "5mbit,rtt=", "-5mbit"):
        with pytest.raises(UsageError):
            run("plan", board, "--link", link)
    with pytest.raises(UsageError, match="--mix"):
        run("plan", board, "--link", "1mbit", "--mix", "1:2")


def test_a_fleet(board: Path, tmp_path: Path) -> None:
    quick = tmp_path / "quick.json"
    quick.write_bytes(write(replace(usual("quick"), frames=99)))
    server = tmp_path / "server.json"
    server.write_bytes(write(usual("rack")))
    words = ("plan", board, quick, server, "--link", "5mbit,rtt=40ms", "--fps", 2, "--p99-ms", 150, "--mix", "3:1")
    said = run(*words).output
    assert "one server carries" in said
    assert "× quick" in said
    (made,) = json.loads(run(*words, "--json").output)
    kinds = made["capacity"]["by_kind"]
    assert kinds["board"] == pytest.approx(3 * kinds["quick"])
