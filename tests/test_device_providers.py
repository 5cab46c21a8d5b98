"""Execution providers, tried for real in processes of their own. Most machines have the CPU alone; the test with a
second one runs where there is one (`pip install onnxruntime-openvino` in place of `onnxruntime`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from exit_bundles import make_exit_bundle
from narrows.device import Device, DeviceOptions, providers
from narrows.device.providers import Trial, best, by_name, choose, hardware, present, try_all, with_provider
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import UsageError
from narrows.runtime.session import CPU, SessionOptions
from PIL import Image
from processes import narrows

ALONE = present() == [CPU]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))
    return make_bundle(tmp_path / "tiny")


def test_a_trial_times_the_head_and_says_who_ran_its_nodes(bundle: Bundle) -> None:
    found = try_all(bundle, bundle.manifest.cuts[0], SessionOptions(threads=1))
    cpu = found[-1]
    assert (cpu.provider, cpu.trouble) == (CPU, "")
    assert cpu.ms is not None
    assert cpu.ms > 0
    assert set(cpu.nodes) == {CPU}
    assert cpu.nodes[CPU] > 1
    assert not cpu.mixed


def test_a_provider_that_misses_the_golden_vectors_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))
    spoilt = make_exit_bundle(tmp_path / "b" / "tiny", spoilt=True)
    trial = try_all(spoilt, spoilt.manifest.cuts[0], SessionOptions())[-1]
    assert trial.ms is None
    assert "does not reproduce" in trial.trouble


def test_a_trial_that_hangs_or_dies_is_only_a_trial(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_TRIAL_S", 0.01)
    assert "no result" in try_all(bundle, bundle.manifest.cuts[0], SessionOptions())[-1].trouble
    monkeypatch.undo()
    (bundle.root / "head.onnx").write_bytes(b"broken")
    assert "head.onnx" in try_all(bundle, bundle.manifest.cuts[0], SessionOptions())[-1].trouble


def test_the_quickest_that_works_is_taken() -> None:
    a, b, broken = Trial("A", 5.0), Trial(CPU, 3.0), Trial("C", None, {}, "no")
    assert best([a, b, broken]) == CPU
    assert best([Trial("A", 1.0), b]) == "A"
    assert best([broken]) == CPU
    assert Trial("A", 1.0, {"A": 3, CPU: 1}).mixed


def test_a_result_is_remembered_for_this_head_on_this_machine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def counted(*arguments: object) -> list[Trial]:
        tried.append(1)
        return [Trial("FastExecutionProvider", 1.0), Trial(CPU, 2.0)]

    monkeypatch.setattr(providers, "present", lambda: ["FastExecutionProvider", CPU])
    monkeypatch.setattr(providers, "try_all", counted)
    cut, one = bundle.manifest.cuts[0], SessionOptions(threads=1)
    for _ in range(2):
        assert choose(bundle, cut, one).providers == ("FastExecutionProvider", CPU)
    assert len(tried) == 1
    choose(bundle, cut, SessionOptions(threads=2))  # another question
    assert len(tried) == 2
    monkeypatch.setattr(providers, "hardware", lambda: "another board")
    choose(bundle, cut, one)
    assert len(tried) == 3
    for kept in Path(os.environ["NARROWS_CACHE"]).rglob("*.json"):
        kept.write_text("damaged")
    choose(bundle, cut, one)
    assert len(tried) == 4


@pytest.mark.skipif(not ALONE, reason="another provider is here")
def test_with_the_cpu_alone_nothing_is_tried(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "try_all", lambda *_: pytest.fail("tried"))
    assert choose(bundle, bundle.manifest.cuts[0], SessionOptions()).providers == (CPU,)


@pytest.mark.skipif(ALONE, reason="this ONNX Runtime has the CPU's provider alone")
def test_another_provider_is_tried_beside_the_cpu(bundle: Bundle) -> None:
    found = try_all(bundle, bundle.manifest.cuts[0], SessionOptions())
    assert len(found) > 1
    with Device(bundle, "127.0.0.1:1", DeviceOptions(timeout_s=0.5)) as device:
        device.infer(pictures(1)[0])
    assert list(Path(os.environ["NARROWS_CACHE"], "providers").glob("*.json"))


def test_names_of_providers() -> None:
    assert by_name("cpu") == by_name("CPUExecutionProvider") == CPU
    with pytest.raises(UsageError, match=r"has .*cpu"):
        by_name("warp-drive")
    assert with_provider(SessionOptions(), CPU).providers == (CPU,)


def test_the_hardware_is_what_the_machine_says(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nCPU part\t: 0xd0b\nprocessor\t: 1\nCPU part\t: 0xd0b\n")
    before = hardware(tmp_path)
    assert before.count("0xd0b") == 1
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B\0")
    assert "Raspberry Pi 5" in hardware(tmp_path)
    assert hardware() == hardware()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_a_run_keeps_to_its_cores(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    code = (
        "import os, json, threading\n"
        "from narrows.cli.app import keep_to_cpus\n"
        f"keep_to_cpus('{core}-{core}')\n"
        "seen = []\n"
        "thread = threading.Thread(target=lambda: seen.append(sorted(os.sched_getaffinity(0))))\n"
        "thread.start(); thread.join()\n"
        "print(json.dumps(seen[0]))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == [core]


def test_cores_that_are_none_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    for cores in ("x", "4096", "3-1", ""):
        command = narrows("run", bundle.root, "--server", "127.0.0.1:1", "--input", tmp_path / "a.png", "--cpus", cores)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "--cpus takes numbers" in done.stderr


def test_the_doctor_tries_a_bundle(bundle: Bundle) -> None:
    command = narrows("doctor", bundle.root, "--json")
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (cpu,) = [one for one in said if one["what"] == "head features on cpu"]
    assert cpu["ok"] is True
    assert "nodes" in cpu["found"]
