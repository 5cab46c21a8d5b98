"""Torch models: one's own, and those of libraries that may not be there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from narrows.partitioner import cut_model, load
from narrows.runtime.errors import MissingDependencyError, ModelError, UsageError

torch = pytest.importorskip("torch")

SOURCE = """
import torch

def small():
    layers = torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(*layers), torch.zeros(2, 3, 16, 16)

class Undecided(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x) * 2 if x.sum() > 0 else torch.tanh(x)

def awkward():
    return Undecided(), torch.ones(2, 3)

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_models.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return "own_models"


def test_a_callable_of_ones_own(own: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(0, 1, (8, 3, 16, 16)).astype(np.float32)
    made = cut_model(f"{own}:small", output=tmp_path / "b", calibrate=data)
    assert made.manifest.batched
    assert made.manifest.inputs[0].name == "input"


def test_weights_from_a_file(own: str, tmp_path: Path) -> None:
    state = {"0.weight": torch.full((4, 3, 3, 3), 0.25), "0.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "weights.pt")
    proto = load(f"{own}:small", tmp_path / "weights.pt").proto
    assert proto.graph.node
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"other\.pt does not fit this model"):
        load(f"{own}:small", tmp_path / "other.pt")
    with pytest.raises(UsageError, match="no such file"):
        load(f"{own}:small", tmp_path / "none.pt")


def test_weights_are_no_pickle_that_runs_code(own: str, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "touched",)  # type: ignore[return-value]

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(UsageError, match="does not fit"):
        load(f"{own}:small", tmp_path / "evil.pt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("name", "words"), [("number", "a torch.nn.Module was expected"), ("nothing", "has no")])
def test_what_is_no_module(own: str, name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load(f"{own}:{name}")


def test_the_older_exporter_takes_what_the_newer_one_refuses(own: str, caplog: pytest.LogCaptureFixture) -> None:
    assert load(f"{own}:awkward").proto.graph.node
    assert "the exporter on torch.export of torch refuses it" in caplog.text


def test_a_missing_library_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match="pip install timm"):
        load("timm:resnet18")


def test_a_folder_that_holds_no_hugging_face_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=r"no folder with a config\.json"):
        load(f"hf:{tmp_path}")


def test_a_text_model_keeps_its_open_sequence(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    try:
        maker = transformers.DistilBertForSequenceClassification
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"transformers does not load here: {str(error)[:60]}")
    config = transformers.DistilBertConfig(dim=24, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=50, num_labels=4)
    maker(config).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    data = {"input_ids": rng.integers(0, 50, (12, 9)), "attention_mask": np.ones((12, 9), np.int64)}
    made = cut_model(f"hf:{tmp_path / 'model'}", "select", output=tmp_path / "b", calibrate=data)
    assert made.manifest.inputs[0].shape == (None,)
    assert made.manifest.outputs[0].kind == "logits"
