"""The report in a real browser: its sliders are moved, and what changes is held against the planner."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser
from narrows.cli import app
from narrows.planner.choose import COSTS, Constraints, best_of, plan
from narrows.planner.link import Link
from narrows.planner.predict import Conditions, predict
from narrows.planner.profile import ProfileError, write
from narrows.report import render, write_pictures, write_report
from narrows.report.figures import LOADS
from narrows.runtime.audit import Audit, Examples, Leak
from narrows.runtime.errors import UsageError
from PIL import Image
from planned import HOSTILE, situation
from typer.testing import CliRunner

pytest.importorskip("plotly", reason="the report needs plotly")

SITUATION = situation()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The report, opened from disk."""
    folder = tmp_path_factory.mktemp("report")
    write_report(folder / "report.html", SITUATION)
    with browser(folder / "profile") as opened:
        opened.set_script_timeout(60)
        opened.get(f"file://{folder}/report.html")
        yield opened


@pytest.fixture(autouse=True)
def as_planned(request: pytest.FixtureRequest) -> None:
    """Every test begins with the planned conditions, by the page's own button."""
    if "page" in request.fixturenames:
        opened = request.getfixturevalue("page")
        opened.execute_script("document.querySelector('#bounds button').click()")
        shown(opened)


def shown(page: Any) -> str:
    """The verdict, once the page has drawn all that was asked."""
    page.execute_async_script("const done = arguments[0]; setTimeout(() => requestAnimationFrame(done), 200)")
    return str(page.find_element("id", "verdict").text)


def asked(page: Any) -> dict[str, Any]:
    """What the sliders stand at, exactly."""
    return dict(page.execute_script("return state"))


def planned(state: dict[str, Any]) -> Any:
    """What the planner says to that."""
    link = replace(SITUATION.link, bps=state["bps"], rtt_s=state["rtt_s"])
    conditions = Conditions(state["device"], state["server"], state["load"])
    bounds = Constraints(**state["bounds"])
    return plan(SITUATION.device, SITUATION.server, link, bounds, state["objective"], conditions)


def milliseconds(verdict: str) -> float:
    found = re.search(r"([\d.]+) ms$", verdict)
    assert found, verdict
    return float(found[1])


def agrees(page: Any) -> Any:
    """Hold what the page says against the planner's word; returns that."""
    verdict, expected = shown(page), planned(asked(page))
    assert page.find_element("id", "verdict").get_attribute("data-point") == str(expected.best.point)
    assert milliseconds(verdict) == pytest.approx(expected.best.latency_ms, rel=0.006), "three digits are shown"
    assert verdict.startswith("Nothing keeps the bounds") == (not expected.feasible)
    return expected


def drag(page: Any, slider: str, pixels: int) -> None:
    """Take a slider's thumb and move it."""
    from selenium.webdriver import ActionChains

    element = page.find_element("id", slider)
    low, high, value = (float(element.get_attribute(name)) for name in ("min", "max", "value"))
    thumb = round((element.size["width"] - 16) * ((value - low) / (high - low) - 0.5))
    actions = ActionChains(page, duration=50)
    actions.move_to_element_with_offset(element, thumb, 0).click_and_hold().move_by_offset(
        pixels, 0
    ).release().perform()


def test_the_page_opens_with_what_was_planned(page: Any) -> None:
    expected = agrees(page)
    assert expected.best.point.mode == "offload"
    assert asked(page)["bps"] == 5e6, "not what a slider's step makes of it"
    assert shown(page).startswith("Do not split")


def test_dragging_the_bandwidth_moves_the_best_cut(page: Any) -> None:
    drag(page, "device", -48)
    assert asked(page)["device"] > 2
    seen = [agrees(page).best.point]
    for _ in range(6):
        drag(page, "bps", -16)
        seen.append(agrees(page).best.point)
    assert asked(page)["bps"] < 3e6
    cuts = list(dict.fromkeys(point.cut for point in seen))
    assert cuts == [None, "layer2.1/Relu", HOSTILE], "the fewer bits a second, the deeper the cut"


def test_dragging_round_trip_and_device_moves_the_best_point(page: Any) -> None:
    drag(page, "device", 56)
    assert asked(page)["device"] < 0.5
    assert agrees(page).best.point.mode == "local"
    drag(page, "rtt", -20)
    assert asked(page)["rtt_s"] < 0.04
    agrees(page)


def test_the_servers_load_is_counted_in_its_queue(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    quiet = agrees(page).best.latency_ms
    for _ in range(3):
        page.find_element("id", "load").send_keys(Keys.ARROW_RIGHT)
    assert asked(page)["load"] == LOADS[3]
    busy = agrees(page)
    assert busy.best.latency_ms > quiet
    assert "60 %" in page.find_element("id", "load-said").text


def test_bounds_that_nothing_keeps_show_the_nearest_miss(page: Any) -> None:
    page.find_element("id", "deadline").send_keys("20")
    missed = agrees(page)
    assert not missed.feasible
    assert f"latency at {missed.misses['latency']:.2f}× its bound" in page.find_element("id", "beside").text


def test_every_figure_of_the_formula_is_the_planners(page: Any) -> None:
    draw = random.Random(5)
    for _ in range(25):
        state = {
            "bps": 10 ** draw.uniform(4.5, 9.5),
            "rtt_s": draw.uniform(0, 0.4),
            "device": 10 ** draw.uniform(-1.5, 1.5),
            "server": 10 ** draw.uniform(-1, 1),
            "load": draw.choice(LOADS),
        }
        made = page.execute_script("return predictions(arguments[0])", state)
        link = replace(SITUATION.link, bps=state["bps"], rtt_s=state["rtt_s"])
        conditions = Conditions(state["device"], state["server"], state["load"])
        expected = predict(SITUATION.device, SITUATION.server, link, conditions)
        assert [one["point"]["label"] for one in made] == [str(one.point) for one in expected]
        for own, true in zip(made, expected, strict=True):
            for stage in fields(true.stages):
                assert own["stages"][stage.name] == pytest.approx(getattr(true.stages, stage.name), rel=1e-9)
            found = [own[name] for name in ("latency", "fps", "bytes", "energy")]
            assert found == pytest.approx(
                [true.latency_ms, true.throughput_fps, true.wire_bytes, true.energy_j], rel=1e-9
            )
            assert own["drop"] == true.accuracy_drop


def test_every_choice_is_the_planners(page: Any) -> None:
    draw = random.Random(6)

    def maybe(low: float, high: float) -> float | None:
        return draw.uniform(low, high) if draw.random() < 0.4 else None

    missed = 0
    for _ in range(60):
        bps, device = 10 ** draw.uniform(5, 9), 10 ** draw.uniform(-1, 1)
        bounds = {
            "deadline_ms": maybe(5, 300),
            "max_accuracy_drop": maybe(0, 20),
            "min_fps": maybe(1, 60),
            "max_bytes": maybe(1000, 30000),
            "max_energy_j": maybe(0.05, 1),
            "max_memory_bytes": maybe(3e7, 1e8),
        }
        objective = draw.choice(list(COSTS))
        state = {"bps": bps, "rtt_s": 0.02, "device": device, "server": 1.0, "load": 0.0}
        made = page.execute_script(
            "return narrows.best(predictions(arguments[0]), arguments[1], arguments[2])", state, bounds, objective
        )
        link = replace(SITUATION.link, bps=bps, rtt_s=0.02)
        everything = predict(SITUATION.device, SITUATION.server, link, Conditions(device))
        expected = best_of(everything, Constraints(**bounds), objective)
        assert made["best"]["point"]["label"] == str(expected.best.point)
        assert made["misses"] == pytest.approx(expected.misses)
        missed += not expected.feasible
    assert 10 < missed < 50, "both kinds came"


def test_a_name_is_never_markup(page: Any) -> None:
    assert page.title == "tiny <b>net</b>: where to cut"
    assert HOSTILE in page.find_element("id", "points").text
    assert page.execute_script("return [document.images.length, document.querySelectorAll('b, i i').length]") == [0, 0]
    assert page.get_log("browser") == [], "no error, nothing that the policy had to stop"


def test_nothing_is_asked_of_a_network(page: Any) -> None:
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked_for = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked_for
    assert {url.partition(":")[0] for url in asked_for} <= {"file", "data", "blob", "chrome"}, (
        "chrome is its own new tab"
    )


def test_the_table_can_be_copied(page: Any) -> None:
    page.execute_script("navigator.clipboard.writeText = async text => { window.copied = text }")
    page.find_element("css selector", "[data-table=points]").click()
    rows = [line.split("\t") for line in page.execute_script("return copied").splitlines()]
    assert len(rows) == 1 + len(predict(SITUATION.device, SITUATION.server, SITUATION.link))
    assert {len(row) for row in rows} == {len(rows[0])}


def test_the_page_fits_a_phone_and_a_dark_room(page: Any) -> None:
    def background() -> str:
        return str(page.execute_script("return getComputedStyle(document.body).backgroundColor"))

    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    light = background()
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    try:
        shown(page)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        taller = (
            "return [...document.querySelectorAll('.plot')].filter(p => p.scrollHeight > p.clientHeight + 1).length"
        )
        assert page.execute_script(taller) == 0, "no picture hangs over the next"
        assert background() != light
        agrees(page)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_an_audit_is_shown(page: Any, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    pixel = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    found = Audit(
        schema=1,
        model=HOSTILE,
        bundle="2" * 64,
        cut=HOSTILE,
        trained_on=80,
        tried_on=20,
        size=(16, 16),
        seed=0,
        rows=(Leak("the mean picture", None, 12.3, 0.2), Leak(HOSTILE, 120.0, 24.5, 0.7, 400)),
        examples=(Examples("the picture", (pixel, pixel)), Examples(HOSTILE, (pixel, pixel))),
    )
    write_report(tmp_path / "audit.html", None, found)
    before = page.current_url
    page.get(f"file://{tmp_path}/audit.html")
    try:
        assert found.says in page.find_element("id", "audit").text
        assert HOSTILE in page.find_element("id", "leaks").text
        assert "24.5" in page.find_element("id", "leaks").text
        assert page.execute_script("return [...document.images].map(i => i.naturalWidth)") == [1] * 4
        assert not page.find_element("id", "plan").is_displayed()
        assert page.get_log("browser") == []
    finally:
        page.get(before)


def test_the_verbs_write_pages(tmp_path: Path) -> None:
    for name, one in (("device", SITUATION.device), ("server", SITUATION.server)):
        (tmp_path / f"{name}.json").write_bytes(write(one))
    words = ["plan", str(tmp_path / "device.json"), str(tmp_path / "server.json"), "--link", "5mbit,rtt=40ms"]
    shown = ["-o", str(tmp_path / "report.html"), "--png", str(tmp_path / "figures")]
    done = CliRunner().invoke(app, [*words, *shown])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    assert len(list((tmp_path / "figures").glob("*.png"))) == 4
    for wrong in (["-o", str(tmp_path / "report.pdf")], ["-o", str(tmp_path / "no" / "r.html")], ["--audit", "a.json"]):
        assert isinstance(CliRunner().invoke(app, [*words, *wrong]).exception, UsageError)


def test_pictures_for_papers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    names = ("a $b_$ name", "layer2.1/Relu", HOSTILE, "layer4/Relu; pool")
    paths = write_pictures(tmp_path / "figures", situation(names))
    assert [path.name for path in paths] == ["latency.png", "narrow.png", "rate.png", "map.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width == 1400
            assert np.asarray(picture.convert("L")).std() > 10, "something is drawn"
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError):
        write_pictures(tmp_path / "file", SITUATION)


def test_what_cannot_be_shown_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_report(tmp_path / "nowhere" / "report.html", SITUATION)
    other = replace(SITUATION, server=replace(SITUATION.server, digest="1" * 64))
    with pytest.raises(ProfileError):
        render(other)
    endless = render(replace(SITUATION, link=Link(math.inf)))
    assert "Infinity" not in endless.partition('id="data">')[2].partition("</script>")[0]
