"""What `narrows run` does, but for the printing."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..runtime.answer import Array
from ..runtime.bundle import Bundle
from ..runtime.errors import UsageError
from ..runtime.link import LinkOptions
from .device import Device
from .options import DeviceOptions
from .outcome import Outcome
from .pull import PullOptions
from .sources import SourceOptions, open_source
from .update import Updater
from .watchdog import Watchdog

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_LENGTH = 100


def run_source(
    bundle: Bundle,
    server: str | Iterable[str],
    source: str | Path,
    options: DeviceOptions | None = None,
    *,
    save_outputs: Path | None = None,
    reading: SourceOptions | None = None,
    update: UpdateFrom | None = None,
    opened: Callable[[Device], None] = lambda _device: None,
) -> Iterator[Outcome]:
    """Stream a source through a bundle and a server.

    Args:
        bundle: its device half at least.
        server: "host:port", or several.
        source: what `sources.open_source` takes.
        options: how to work.
        save_outputs: a folder for the raw outputs, one `.npz` a frame; `options.wanted` has to ask for them.
        reading: how the source is read.
        update: swap new versions in while frames go through.
        opened: told of the device once its graphs are loaded; for whoever shows its status.

    Yields:
        One outcome a frame, in order.

    Raises:
        SourceError: nothing at `source`.
        NarrowsError: what `Device` and `Device.stream` raise.
    """
    frames = open_source(source, bundle.manifest, reading)
    with Device(bundle, server, options) as device, Watchdog(device), _updater(device, update):
        opened(device)
        for outcome in device.stream(frames):
            if save_outputs is not None and outcome.error is None:
                save(outcome, save_outputs)
            yield outcome


@dataclass(frozen=True, slots=True)
class UpdateFrom:
    """Where new versions come from."""

    server: str
    """ "host:port"."""
    target: Path
    """The link that `narrows pull` made."""
    every_s: float = 60.0
    link: LinkOptions = field(default_factory=LinkOptions)


def _updater(device: Device, update: UpdateFrom | None) -> AbstractContextManager[object]:
    if update is None:
        return nullcontext()
    if not update.target.is_symlink():
        raise UsageError(f"{update.target} was not made by `narrows pull`, so no newer version can take its place")
    return Updater(device, update.server, update.target, update.every_s, PullOptions(link=update.link))


def save(outcome: Outcome, folder: Path) -> Path:
    """Write one frame's outputs as an `.npz`, named after its number and its source; the path.

    Raises:
        UsageError: the folder cannot be written to.
    """
    stem = _UNSAFE.sub("_", Path(outcome.source).name).strip("._")[-_NAME_LENGTH:]
    path = folder / f"{outcome.id:06d}-{stem}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_npz(path, _arrays(outcome))
    except OSError as error:
        raise UsageError(f"outputs cannot be saved in {folder}: {error.strerror or error}") from None
    return path


def _arrays(outcome: Outcome) -> Mapping[str, Array]:
    """An outcome's outputs; of several tails, each under its tail's name and a slash."""
    if len(outcome.answers) < 2:
        return outcome.outputs
    return {f"{tail}/{n}": array for tail, answer in outcome.answers.items() for n, array in answer.outputs.items()}


def _write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """`numpy.savez`, but for names of tensors that are names of its own arguments."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
