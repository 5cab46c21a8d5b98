"""Which execution provider the head runs on: tried here, on the golden vectors and against the clock, and remembered.

Every provider that this ONNX Runtime has is tried in a process of its own, so that one that crashes or hangs on this
board costs a trial and not the run. One that reproduces the golden vectors counts, and the quickest of them is
taken. The result is kept under the user's cache, by the head's digest, ONNX Runtime's version and the hardware; so are
the engines that TensorRT and OpenVINO compile meanwhile (`runtime/session.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec

from ..runtime.bundle import Bundle, cache_folder
from ..runtime.errors import UsageError
from ..runtime.manifest import Cut
from ..runtime.session import CPU, SessionOptions, runtime

log = logging.getLogger(__name__)

CANDIDATES = (
    "TensorrtExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
    "CUDAExecutionProvider",
    "OpenVINOExecutionProvider",
    "ACLExecutionProvider",
    "XnnpackExecutionProvider",
    CPU,
)
_SUFFIX = "ExecutionProvider"
_BACKUPS = {
    "TensorrtExecutionProvider": ("CUDAExecutionProvider",),
    "NvTensorRTRTXExecutionProvider": ("CUDAExecutionProvider",),
}
"""What takes the nodes that a provider does not, before the CPU does."""
_TRIAL_S = 600.0
"""TensorRT may build an engine for minutes on a small board; that happens once."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one provider."""

    provider: str
    ms: float | None = None
    """Median time of the head; None where it cannot be used."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Nodes of the optimised head by the provider that really ran them."""
    trouble: str = ""
    """Why it cannot be used."""

    @property
    def mixed(self) -> bool:
        """Whether some nodes fell back to another provider."""
        return len(self.nodes) > 1


def short_name(provider: str) -> str:
    """The provider as people call it: "cuda" for `CUDAExecutionProvider`."""
    return provider.removesuffix(_SUFFIX).lower()


def by_name(name: str) -> str:
    """The provider that is meant: `cuda`, `CUDA` and `CUDAExecutionProvider` are the same.

    Raises:
        UsageError: this ONNX Runtime has no such provider.
    """
    present = [str(one) for one in runtime().get_available_providers()]
    for one in present:
        if name.lower() in (one.lower(), short_name(one)):
            return one
    raise UsageError(
        f"no execution provider {name!r} here; this ONNX Runtime has {', '.join(map(short_name, present))}"
    )


def present() -> list[str]:
    """The providers that can be tried here, in our order of preference; the CPU is always the last."""
    there = set(runtime().get_available_providers())
    return [provider for provider in CANDIDATES if provider in there]


def with_provider(options: SessionOptions, provider: str) -> SessionOptions:
    """The options with a provider first, and behind it those that take what it does not."""
    there = set(runtime().get_available_providers())
    backups = [one for one in _BACKUPS.get(provider, ()) if one in there]
    return replace(options, providers=tuple(dict.fromkeys((provider, *backups, CPU))))


def choose(
    bundle: Bundle, cut: Cut, options: SessionOptions, tell: Callable[[str], None] = lambda _text: None
) -> SessionOptions:
    """The options with the provider that is quickest here; tried now, or remembered from an earlier trial.

    Args:
        bundle: the device's half at least.
        cut: whose head is timed.
        options: threads and the rest.
        tell: takes a line for the user before each trial that may last.
    """
    if present() == [CPU]:
        return with_provider(options, CPU)
    kept = cache_folder() / "providers" / f"{_key(bundle, cut, options)}.json"
    found = _remembered(kept)
    if found is None:
        found = try_all(bundle, cut, options, tell)
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps([asdict(trial) for trial in found], indent=1))
        temporary.replace(kept)
    return with_provider(options, best(found))


def best(found: Sequence[Trial]) -> str:
    """The quickest provider of those that can be used; the CPU where none can."""
    usable = {trial.provider: trial.ms for trial in found if trial.ms is not None}
    return min(usable, key=lambda provider: usable[provider]) if usable else CPU


def try_all(
    bundle: Bundle, cut: Cut, options: SessionOptions, tell: Callable[[str], None] = lambda _text: None
) -> list[Trial]:
    """Try every provider that this ONNX Runtime has, one after the other."""
    found = []
    for provider in present():
        if provider != CPU:
            tell(f"trying the head of {bundle.manifest.name!r} on {short_name(provider)}; this is done once")
        found.append(_try(bundle, cut, with_provider(options, provider)))
        log.info("%s", found[-1])
    return found


def _try(bundle: Bundle, cut: Cut, options: SessionOptions) -> Trial:
    provider = options.providers[0]
    job = {"bundle": str(bundle.root), "cut": cut.name, "providers": options.providers, "threads": options.threads}
    # A file, and not a pipe: a provider's library may write to standard output what it likes.
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", f"{__package__}.trial", json.dumps(job), str(report)]
        # The child finds this very package, however the parent did.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(command, capture_output=True, env=environment, timeout=_TRIAL_S, check=False)
        except subprocess.TimeoutExpired:
            return Trial(provider, trouble=f"no result within {_TRIAL_S:.0f} s")
        if not report.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            return Trial(provider, trouble=f"the trial ended with {done.returncode}: {said[-1] if said else 'no word'}")
        return msgspec.json.decode(report.read_bytes(), type=Trial)


def _remembered(kept: Path) -> list[Trial] | None:
    try:
        found = msgspec.json.decode(kept.read_bytes(), type=list[Trial])
    except (OSError, msgspec.MsgspecError):
        return None
    # A driver that came or went since is another machine.
    return found if [trial.provider for trial in found] == present() else None


def _key(bundle: Bundle, cut: Cut, options: SessionOptions) -> str:
    head = bundle.manifest.files[cut.head].sha256
    facts = [head, runtime().__version__, hardware(), str(options.threads), str(sorted(os.sched_getaffinity(0)))]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def hardware(root: Path = Path("/")) -> str:
    """What this machine is, as far as it says: processor, board, GPUs and their driver."""
    lines = [platform.machine()]
    cpu = _read(root / "proc/cpuinfo").splitlines()
    lines += sorted({line for line in cpu if line.partition(":")[0].strip() in _CPU_FACTS})
    lines.append(_read(root / "proc/device-tree/model").strip("\0"))
    gpus = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    lines += [line for gpu in gpus for line in _read(gpu).splitlines() if line.startswith("Model")]
    lines.append(_read(root / "proc/driver/nvidia/version").partition("\n")[0])
    lines.append(_read(root / "etc/nv_tegra_release").partition("\n")[0])
    return "\n".join(filter(None, lines))


_CPU_FACTS = ("model name", "CPU implementer", "CPU part", "CPU variant", "Model", "Hardware")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
