"""Models as they are in the wild: what is odd is cut, what is broken is refused by name, and nothing is left behind."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import CHANNELS, SIDE, GraphBuilder, residual
from material import ABSENT, FOLDER
from narrows.partitioner import Quantiser, cut_model, list_cuts, load
from narrows.runtime.errors import (
    BY_CODE,
    ExternalDataError,
    GraphError,
    ModelError,
    ModelFormatError,
    NarrowsError,
    NothingToCutError,
    OperatorError,
    OpsetError,
    ProofError,
)
from narrows.runtime.halves import Head, Tail
from onnx import TensorProto, helper, numpy_helper

needs_material = pytest.mark.skipif(not (FOLDER / "robustness").is_dir(), reason=ABSENT)
QUICK = Quantiser(levels=(4, 16, 256))


def frames(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (count, CHANNELS, SIDE, SIDE)).astype(np.float32)


def cyclic(m: onnx.ModelProto) -> None:
    m.graph.node[1].input[0] = "add"


def unsorted(m: onnx.ModelProto) -> None:
    nodes = list(reversed(m.graph.node))
    del m.graph.node[:]
    m.graph.node.extend(nodes)


def unmade(m: onnx.ModelProto) -> None:
    m.graph.node[1].input[0] = "ghost"


def made_twice(m: onnx.ModelProto) -> None:
    m.graph.node[3].output[0] = "r0"


def weight_twice(m: onnx.ModelProto) -> None:
    m.graph.initializer.append(m.graph.initializer[0])


def output_unmade(m: onnx.ModelProto) -> None:
    m.graph.output[0].name = "ghost"


def sequence_input(m: onnx.ModelProto) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    m.graph.input.append(helper.make_value_info("bags", kind))


def unknown_op(m: onnx.ModelProto) -> None:
    m.graph.node[1].op_type = "Rectify"


def unknown_domain(m: onnx.ModelProto) -> None:
    m.graph.node[1].domain = "com.example"
    m.opset_import.append(helper.make_opsetid("com.example", 1))


def retired_op(m: onnx.ModelProto) -> None:
    m.graph.node[1].op_type = "Upsample"


def newer_opset(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = onnx.defs.onnx_opset_version() + 1


def newer_ir(m: onnx.ModelProto) -> None:
    m.ir_version = onnx.IR_VERSION + 1


def no_opset(m: onnx.ModelProto) -> None:
    del m.opset_import[:]


def external(location: str, length: int = 64) -> Callable[[onnx.ModelProto], None]:
    def change(m: onnx.ModelProto) -> None:
        tensor = m.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)

    return change


BROKEN = [
    (cyclic, GraphError, r"cycle.*n_r0"),
    (unsorted, GraphError, r"n_probabilities \(Softmax\) reads 'logits' before n_logits"),
    (unmade, GraphError, r"n_r0 \(Relu\) reads 'ghost', which no node makes"),
    (made_twice, GraphError, r"makes 'r0', which is there already"),
    (weight_twice, GraphError, r"initializer 'w0' is there twice"),
    (output_unmade, GraphError, r"output 'ghost' is made by no node"),
    (sequence_input, GraphError, r"input 'bags' is a sequence"),
    (unknown_op, OperatorError, r"n_r0 \(Rectify\)"),
    (unknown_domain, OperatorError, r"n_r0 \(Relu\) is of the domain 'com.example'"),
    (retired_op, OperatorError, r"n_r0 \(Upsample\) is no longer an op"),
    (newer_opset, OpsetError, r"pip install -U onnx"),
    (newer_ir, OpsetError, r"IR version"),
    (no_opset, OpsetError, r"says no opset"),
    (external("gone.data"), ExternalDataError, r"'w0' has its data in 'gone.data', which is not beside the model"),
    (external("../secret.data"), ExternalDataError, r"outside the model's folder"),
    (external("/etc/passwd"), ExternalDataError, r"outside the model's folder"),
    (external("short.data", 10**6), ExternalDataError, r"'w0' ends at byte 1000000 of 'short.data', which has 8"),
]


@pytest.mark.parametrize(("change", "error", "words"), BROKEN)
def test_a_broken_model_is_refused_by_name(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], error: type[ModelError], words: str
) -> None:
    (tmp_path / "secret.data").write_bytes(b"s" * 10_000)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "short.data").write_bytes(b"12345678")
    proto = residual()
    change(proto)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(error, match=words) as caught:
        cut_model(folder / "net.onnx", "r1", output=tmp_path / "bundle", calibrate=frames())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "secret.data"]


def test_external_data_through_a_link_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.data").write_bytes(b"s" * 10_000)
    (folder / "weights.data").symlink_to(tmp_path / "secret.data")
    proto = residual()
    external("weights.data")(proto)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ExternalDataError, match="outside"):
        load(folder / "net.onnx")


def test_a_model_that_is_cut_short(tmp_path: Path) -> None:
    whole = residual().SerializeToString()
    refused = 0
    for length in range(1, len(whole), 97):
        (tmp_path / "net.onnx").write_bytes(whole[:length])
        try:
            list_cuts(tmp_path / "net.onnx")
        except ModelError:
            refused += 1
    assert refused == len(range(1, len(whole), 97))


def test_every_refusal_has_an_exit_code_of_its_own() -> None:
    codes = [error.exit_code for error in BY_CODE.values() if issubclass(error, ModelError)]
    assert len(codes) == len(set(codes))


def test_a_model_that_rolls_dice_cannot_be_proven(tmp_path: Path) -> None:
    b = GraphBuilder()
    noise = b.op("RandomNormalLike", b.op("Relu", "x", name="r"))
    b.op("Tanh", b.op("Add", "r", noise, name="noisy"), name="y")
    onnx.save(b.model(["y"], shape=(1, CHANNELS, SIDE, SIDE)), tmp_path / "net.onnx")
    with pytest.raises(ProofError, match="differently every time"):
        cut_model(tmp_path / "net.onnx", "noisy", output=tmp_path / "b", quantiser=None)


def test_large_weights_stay_in_files(tmp_path: Path) -> None:
    onnx.save_model(
        residual(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0
    )
    made = cut_model(tmp_path / "net.onnx", "r1", output=tmp_path / "b", calibrate=frames())
    assert "head.onnx.data" in made.manifest.files
    cut = made.manifest.cuts[0]
    Tail(made, cut).run([Head(made, cut).run([frames(1)[0]]).symbols], [0])


def test_a_model_with_a_sparse_weight(tmp_path: Path) -> None:
    b = GraphBuilder()
    b.op("Relu", b.conv("x"), name="r")
    b.op("MatMul", b.op("Flatten", "r", name="flat"), "sparse", name="y")
    proto = b.model(["y"])
    size = CHANNELS * SIDE * SIDE
    values = numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "sparse")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([3, 7], np.int64)), [size, 2])
    )
    onnx.save(proto, tmp_path / "net.onnx")
    assert cut_model(tmp_path / "net.onnx", "r", output=tmp_path / "b", calibrate=frames()).manifest.batched


def test_functions_are_inlined(tmp_path: Path) -> None:
    b = GraphBuilder()
    b.op("Double", b.conv("x", name="c"), name="d", domain="own")
    b.op("Relu", "d", name="y")
    proto = b.model(["y"])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    double = helper.make_node("Add", ["a", "a"], ["b"])
    proto.functions.append(
        helper.make_function("own", "Double", ["a"], ["b"], [double], [helper.make_opsetid("", 17)], [])
    )
    onnx.save(proto, tmp_path / "net.onnx")
    assert {cut.name for cut in list_cuts(tmp_path / "net.onnx", 1)} == {"c", "d"}


def test_an_if_is_one_node_that_takes_what_it_captures(tmp_path: Path) -> None:
    b = GraphBuilder()
    b.op("Relu", b.conv("x"), name="r")
    b.op("ReduceMax", "r", name="top", keepdims=0)
    b.op("Greater", "top", b.weight(np.array(0.5, np.float32)), name="big")
    scale = b.weight(np.array(2.0, np.float32), "scale")
    branches = [
        helper.make_graph(
            [helper.make_node(kind, ["r", scale], [f"{kind}_y"])],
            kind,
            [],
            [helper.make_empty_tensor_value_info(f"{kind}_y")],
        )
        for kind in ("Mul", "Add")
    ]
    b.op("If", "big", name="chosen", then_branch=branches[0], else_branch=branches[1])
    b.op("Tanh", "chosen", name="y")
    onnx.save(b.model(["y"], shape=(1, CHANNELS, SIDE, SIDE)), tmp_path / "net.onnx")
    names = [cut.name for cut in list_cuts(tmp_path / "net.onnx", 2)]
    assert "r" in names
    assert "r+big" in names
    assert not any("Mul_y" in name for name in names)
    for name in ("r", "r+big", "chosen"):
        cut_model(tmp_path / "net.onnx", name, output=tmp_path / "b", calibrate=frames(), quantiser=QUICK)


def transformer(dtype: int) -> onnx.ModelProto:
    """A block of attention over `[batch, sequence, 16]` with layer norm, in one element type."""
    b = GraphBuilder()
    numpy = helper.tensor_dtype_to_np_dtype(dtype)

    def dense(x: str, name: str) -> str:
        return b.op("MatMul", x, b.weight(b.rng.normal(0, 0.2, (16, 16)).astype(numpy)), name=name)

    def norm(x: str, name: str) -> str:
        ones, zeros = b.weight(np.ones(16, numpy)), b.weight(np.zeros(16, numpy))
        return b.op("LayerNormalization", x, ones, zeros, name=name, axis=-1)

    x = norm("x", "first")
    q, k, v = (dense(x, name) for name in "qkv")
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    x = norm(b.op("Add", b.op("MatMul", scores, v), x, name="sum"), "second")
    b.op("ReduceMean", dense(x, "wide"), name="y", axes=[1], keepdims=0)
    proto = b.model(["y"], shape=["batch", "sequence", 16])
    proto.graph.input[0].type.tensor_type.elem_type = dtype
    return proto


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_transformers_of_every_element_type(tmp_path: Path, dtype: int) -> None:
    """Signed activations of rank 3, channels last, with an open dimension that survives."""
    onnx.save(transformer(dtype), tmp_path / "net.onnx")
    tokens = np.random.default_rng(0).normal(0, 1, (24, 12, 16))
    data = tokens.astype({TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}.get(dtype, np.float32))
    made = cut_model(tmp_path / "net.onnx", "sum", output=tmp_path / "b", calibrate=data)
    (cut,) = made.manifest.cuts
    (tensor,) = cut.crossing
    assert tensor.symbols.shape == (None, 16)
    assert tensor.channel_axis == 1
    assert cut.qualities[-1].agreement == 1.0
    top = len(cut.qualities) - 1
    features = Head(made, cut).run([data[0, :7]], top)
    assert features.symbols[0].shape == (7, 16)
    Tail(made, cut).run([features.symbols], [top])


@pytest.mark.parametrize("shape", [("batch", 6), ("batch", 6, 5), ("batch", 3, 6, 5), ("batch", 2, 3, 6, 5)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_symbols_of_every_rank(tmp_path: Path, shape: tuple[Any, ...], per_channel: bool) -> None:
    b = GraphBuilder()
    b.op("Tanh", b.op("Mul", "x", b.weight(np.array(1.5, np.float32)), name="t"), name="y")
    onnx.save(b.model(["y"], shape=shape), tmp_path / "net.onnx")
    data = np.random.default_rng(0).normal(0, 1, (64, *shape[1:])).astype(np.float32)
    quantiser = Quantiser(per_channel=per_channel)
    made = cut_model(tmp_path / "net.onnx", "t", output=tmp_path / "b", calibrate=data, quantiser=quantiser)
    assert made.manifest.cuts[0].qualities[-1].max_deviation < 0.03


def test_integers_cross_as_they_are(tmp_path: Path) -> None:
    b = GraphBuilder()
    scale, zero = b.weight(np.array(0.05, np.float32)), b.weight(np.array(128, np.uint8))
    b.op("QuantizeLinear", b.conv("x"), scale, zero, name="q")
    b.op("Relu", b.op("DequantizeLinear", "q", scale, zero, name="dq"), name="y")
    onnx.save(b.model(["y"]), tmp_path / "net.onnx")
    assert list_cuts(tmp_path / "net.onnx")[0].name == "q"
    (cut,) = cut_model(tmp_path / "net.onnx", "q", output=tmp_path / "b", calibrate=frames()).manifest.cuts
    assert cut.crossing[0].symbols.dtype == "uint8"
    assert set(cut.crossing[0].levels) == {256}, "the model's own symbols are coded as symbols"
    assert [ref.coder for ref in cut.crossing[0].tables] == ["context/1"]
    assert cut.qualities[0].max_deviation == 0


def three_depths(path: Path) -> list[str]:
    cuts = list_cuts(path)
    deepest = max(cut.depth for cut in cuts)
    return list(dict.fromkeys(min(cuts, key=lambda c: abs(c.depth / deepest - d)).name for d in (0.25, 0.5, 0.75)))


def light_and_real() -> list[Path]:
    return sorted([*FOLDER.glob("robustness/onnx_light/*.onnx"), *FOLDER.glob("models/*.onnx")])


@needs_material
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", light_and_real(), ids=lambda p: p.stem)
def test_real_topologies_are_cut_at_three_depths(tmp_path: Path, path: Path) -> None:
    (value,) = load(path).proto.graph.input
    dims = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    noise = np.random.default_rng(0).uniform(0, 255, (1, *dims[1:]))
    data = noise.astype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    for name in three_depths(path):
        cut_model(path, name, output=tmp_path / "b", calibrate=data, quantiser=Quantiser(levels=(16, 256)))


@needs_material
@pytest.mark.timeout(600)
def test_the_backend_tests_of_onnx_are_cut_or_refused(tmp_path: Path) -> None:
    """Every one that ONNX Runtime runs is cut and proven, or holds nothing to cut, or is no graph of tensors."""
    index = json.loads((FOLDER / "robustness" / "onnx_backend_index.json").read_text())
    runs = {entry["name"]: entry["ort"] for entry in index}
    with tarfile.open(FOLDER / "robustness" / "onnx_backend_tests.tar.xz") as archive:
        files = {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]
    outcomes: Counter[str] = Counter()
    wrong = []
    for name in sorted(name for name in files if name.endswith("/model.onnx")):
        test = name.split("/")[-2]
        try:
            outcomes[_examine(files, name, tmp_path)] += 1
        except NarrowsError as error:
            outcomes[error.code] += 1
            refused = isinstance(error, NothingToCutError | GraphError)
            if runs.get(test) == "match" and not refused:
                wrong.append(f"{test}: {error}")
    assert not wrong
    assert outcomes["proven"] >= 180


def _examine(files: dict[str, bytes], name: str, folder: Path) -> str:
    path = folder / "model.onnx"
    path.write_bytes(files[name])
    model = load(path)
    cuts = list_cuts(model)
    data = {}
    for i, value in enumerate(model.proto.graph.input):
        tensor = TensorProto()
        tensor.ParseFromString(files[name.replace("model.onnx", f"test_data_set_0/input_{i}.pb")])
        data[value.name] = numpy_helper.to_array(tensor)[None]
    for cut in dict.fromkeys((cuts[0].name, cuts[len(cuts) // 2].name, cuts[-1].name)):
        cut_model(model, cut, output=folder / "bundle", calibrate=data, quantiser=QUICK)
    return "proven"


def test_a_file_of_noise_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ModelFormatError):
        load(tmp_path / "net.onnx")


def test_arrays_round_trip_through_a_file(tmp_path: Path) -> None:
    onnx.save(residual(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=frames())
    assert cut_model(tmp_path / "net.onnx", "r1", output=tmp_path / "b", calibrate=tmp_path / "data.npz")
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], object), allow_pickle=True)
    (tmp_path / "evil.npy").write_bytes(buffer.getvalue())
    with pytest.raises(NarrowsError, match="no readable file of arrays"):
        cut_model(tmp_path / "net.onnx", "r1", output=tmp_path / "b", calibrate=tmp_path / "evil.npy")
