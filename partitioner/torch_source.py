"""Torch modules as ONNX: out of torchvision, timm, a Hugging Face folder or one's own code, with an open batch.

The exporter built on `torch.export` comes first; where it fails and the older one that traces works, that is used, and
the log says so.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..runtime.errors import MissingDependencyError, ModelError, NarrowsError, UsageError, first_line
from .model import Model, from_file, nearest
from .quiet import quiet_exporter

logger = logging.getLogger(__name__)

RANDOM = "random"
_INSTALL = {
    "torch": "pip install 'narrows[partition]'",
    "torchvision": "pip install torchvision",
    "timm": "pip install timm",
    "transformers": "pip install transformers",
    "safetensors": "pip install safetensors",
    "onnx2torch": "pip install 'narrows[onnx-teacher]'",
}
_SIDE = 224
_TOKENS = 16


@dataclass(frozen=True)
class Module:
    """A torch module, and what is needed to export it."""

    module: Any
    example: tuple[Any, ...]
    """Inputs, each with a batch axis of 2 first."""
    names: tuple[str, ...] = ("input",)
    open_axes: dict[int, str] = field(default_factory=dict)
    """Axes other than the batch that are open, the same for every input."""


def from_library(source: str, weights: str | Path | None) -> Model:
    """The model behind `torchvision:NAME`, `timm:NAME`, `hf:PATH` or `package.module:callable`.

    Raises:
        ModelError: there is none of that name, its weights do not fit, or it cannot be exported.
        MissingDependencyError: the library is not installed.
    """
    return export(module_from(source, weights), Path(source.partition(":")[2]).name)


def module_from(source: Any, weights: str | Path | None) -> Module:
    """The torch module behind what `from_library` takes, or behind a module that is there already, with an example.

    Raises:
        ModelError: there is none of that name, or it is none.
        UsageError: weights that do not fit.
        MissingDependencyError: the library is not installed.
    """
    if not isinstance(source, str | Path):
        made = _with_example(source, type(source).__name__)
        _load_weights(made.module, weights)
        return made
    where, _, name = str(source).partition(":")
    makers: dict[str, Callable[[str, str | Path | None], Module]] = {
        "torchvision": _torchvision,
        "timm": _timm,
        "hf": _hugging_face,
    }
    return makers[where](name, weights) if where in makers else _own(where, name, weights)


class _Folder:
    """A temporary folder that goes when the last model that has its weights there goes."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="narrows."))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def export(source: Any, name: str) -> Model:
    """Export a torch module.

    Args:
        source: a `Module`, a `torch.nn.Module` that takes one picture (`float32 [B, 3, 224, 224]`), or a pair of
            one and its example inputs.
        name: the model's name.

    Raises:
        ModelError: it is no module, or neither exporter takes it.
    """
    made = source if isinstance(source, Module) else _with_example(source, name)
    folder = _Folder()
    made.module.eval()
    path = folder.path / "model.onnx"
    reasons = []
    for exporter in (_export, _trace):
        try:
            with quiet_exporter():
                exporter(made, path)
            loaded = from_file(path, name)
        # The exporters promise no class of their own for what they cannot do: whatever they raise is their refusal.
        except Exception as error:
            if isinstance(error, NarrowsError) and exporter is _trace:
                raise
            reasons.append(f"{type(error).__name__}: {first_line(error)}")
            logger.warning("%s: %s of torch refuses it (%s)", name, exporter.__doc__, reasons[-1])
        else:
            return Model(loaded.name, loaded.proto, loaded.folder, folder)
    raise ModelError(f"{name}: torch exports it neither with torch.export nor by tracing ({'; '.join(reasons)})")


def _export(made: Module, path: Path) -> None:
    """the exporter on torch.export"""
    torch = library("torch")
    dims = {0: torch.export.Dim("batch")} | {axis: torch.export.Dim(n) for axis, n in made.open_axes.items()}
    with torch.no_grad():
        torch.onnx.export(
            made.module,
            made.example,
            path,
            input_names=list(made.names),
            dynamic_shapes=tuple(dims for _ in made.example),
            dynamo=True,
            external_data=True,
            verbose=False,
        )


def _trace(made: Module, path: Path) -> None:
    """the exporter that traces"""
    torch = library("torch")
    axes = {0: "batch"} | made.open_axes
    with torch.no_grad():
        torch.onnx.export(
            made.module,
            made.example,
            path,
            input_names=list(made.names),
            dynamic_axes=dict.fromkeys(made.names, axes),
            dynamo=False,
        )


def _with_example(source: Any, name: str) -> Module:
    torch = library("torch")
    module, example = source if isinstance(source, tuple) and len(source) == 2 else (source, None)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{name}: a torch.nn.Module was expected, {type(module).__name__} came")
    if example is None:
        example = torch.zeros(2, 3, _SIDE, _SIDE)
    inputs = example if isinstance(example, tuple) else (example,)
    names = ("input",) if len(inputs) == 1 else tuple(f"input_{i}" for i in range(len(inputs)))
    return Module(module, inputs, names)


def _torchvision(name: str, weights: str | Path | None) -> Module:
    torch, models = library("torch"), library("torchvision").models
    if name not in models.list_models():
        raise ModelError(f"torchvision has no model {name!r}; {_near(name, models.list_models())}")
    own = models.get_model_weights(name).DEFAULT
    crop = getattr(own.transforms(), "crop_size", [_SIDE])
    torch.manual_seed(0)
    module = models.get_model(name, weights=own if weights is None else None, **_unfinished(name, weights))
    _load_weights(module, weights)
    return Module(module, (torch.zeros(2, 3, crop[0], crop[-1]),))


def _unfinished(name: str, weights: str | Path | None) -> dict[str, Any]:
    """torchvision's Inception and GoogLeNet take a minute to draw random numbers that a file then overwrites."""
    return {"init_weights": weights == RANDOM} if weights and name in ("inception_v3", "googlenet") else {}


def _timm(name: str, weights: str | Path | None) -> Module:
    torch, timm = library("torch"), library("timm")
    if not timm.is_model(name.split(".", maxsplit=1)[0]):
        raise ModelError(f"timm has no model {name!r}; {_near(name, timm.list_models())}")
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=weights is None)
    _load_weights(module, weights)
    size = getattr(module, "default_cfg", {}).get("input_size", (3, _SIDE, _SIDE))
    return Module(module, (torch.zeros(2, *size),))


def _hugging_face(path: str, weights: str | Path | None) -> Module:
    """A folder with `config.json`; the class is the one that the configuration names."""
    torch, transformers = library("torch"), library("transformers")
    if not (Path(path) / "config.json").is_file():
        raise ModelError(f"hf:{path}: no folder with a config.json; models are taken from disk only")
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    architecture = next(iter(config.architectures or ()), None)
    try:
        maker = getattr(transformers, architecture or "AutoModel")
    except (AttributeError, ImportError) as error:
        raise ModelError(f"hf:{path}: this transformers has no {architecture} ({first_line(error)})") from None
    try:
        if weights is None:
            module = maker.from_pretrained(path, local_files_only=True)
        else:
            module = maker(config) if architecture else maker.from_config(config)
    except (OSError, ValueError) as error:
        raise ModelError(f"hf:{path}: {first_line(error)}") from None
    _load_weights(module, weights)
    pictures = getattr(module, "main_input_name", "input_ids") == "pixel_values"
    wrapped = _first_output(torch, module, pictures=pictures)
    if pictures:
        side = getattr(config, "image_size", _SIDE)
        height, width = side if isinstance(side, list | tuple) else (side, side)
        return Module(wrapped, (torch.zeros(2, getattr(config, "num_channels", 3), height, width),), ("pixel_values",))
    tokens = torch.ones(2, _TOKENS, dtype=torch.int64)
    return Module(wrapped, (tokens, tokens), ("input_ids", "attention_mask"), {1: "sequence"})


def _first_output(torch: ModuleType, module: Any, *, pictures: bool) -> Any:
    """The module with tensors in and its first tensor out, instead of keyword arguments and a record."""

    class FirstOutput(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, first: Any, mask: Any = None) -> Any:
            if pictures:
                return self.inner(pixel_values=first, return_dict=False)[0]
            return self.inner(input_ids=first, attention_mask=mask, return_dict=False)[0]

    return FirstOutput()


def _own(module: str, attribute: str, weights: str | Path | None) -> Module:
    """Import `module` and call `attribute` of it. The working folder is searched, as `python -m` does."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ModelError(f"{module}:{attribute} cannot be imported ({error}), and is no file either") from None
    except (AttributeError, ValueError):
        raise ModelError(f"{module} has no {attribute!r}") from None
    made = _with_example(found if hasattr(found, "state_dict") or not callable(found) else found(), attribute)
    _load_weights(made.module, weights)
    return made


def _load_weights(module: Any, weights: str | Path | None) -> None:
    """Put a file's state dict into the module.

    Raises:
        UsageError: the file cannot be read, or does not fit the module.
    """
    if weights is None or weights == RANDOM:
        return
    path = Path(weights)
    try:
        if path.suffix == ".safetensors":
            state = library("safetensors.torch").load_file(path)
        else:
            # Without code: a state dict comes from strangers, and a full pickle runs what it says.
            state = library("torch").load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(state.get("state_dict", state) if isinstance(state, dict) else state)
    except FileNotFoundError:
        raise UsageError(f"--weights: {path}: no such file") from None
    except Exception as error:  # noqa: BLE001 - torch, pickle and safetensors have errors of their own for a bad file
        raise UsageError(f"--weights: {path} does not fit this model ({first_line(error)})") from None


def library(name: str) -> Any:
    """Import a library that an extra brings.

    Raises:
        MissingDependencyError: it is not there, or does not load; how to install it.
    """
    try:
        return importlib.import_module(name)
    # A torchvision built for another torch fails with RuntimeError, a missing shared library with OSError.
    except (ImportError, RuntimeError, OSError) as error:
        install = _INSTALL.get(name.partition(".")[0], f"pip install {name}")
        raise MissingDependencyError(f"{name} cannot be imported ({first_line(error)}): {install}") from None


def _near(name: str, names: list[str]) -> str:
    return f"the nearest names are {', '.join(nearest(name, names))}"
