"""From a model to a bundle: halves recompose, qualities behave, options and bad input get clear words."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import CHANNELS, SIDE, GraphBuilder, random_models, residual
from hypothesis import HealthCheck, given, settings
from material import ABSENT, FOLDER
from narrows.partitioner import Quantiser, cut_model, list_cuts
from narrows.partitioner.batch import with_batch
from narrows.partitioner.cuts import separate
from narrows.partitioner.data import made_up_frames
from narrows.partitioner.graph import view
from narrows.partitioner.model import Model, normalise
from narrows.partitioner.prove import Feeder, check_exact
from narrows.partitioner.runner import Runner
from narrows.partitioner.search import frontiers
from narrows.partitioner.split import split
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import BundleError, CutError, ModelError, SourceError, UnknownTensorError, UsageError
from narrows.runtime.halves import Head, Tail
from narrows.runtime.images import fit, load_image
from PIL import Image

MEAN, STD = np.array([0.1, 0.2, 0.3], np.float32), np.array([1, 2, 3], np.float32)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def frames(count: int = 24, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 1, (count, CHANNELS, SIDE, SIDE)).astype(np.float32)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(residual(), tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.fixture(scope="module")
def bundle(net: Path) -> Bundle:
    return cut_model(net, "r1", output=net.parent / "bundle", calibrate=frames(), name="residual net")


def whole(path: Path, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(path)
    result: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return result


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(proto=random_models(7))
def test_every_cut_of_a_random_graph_recomposes(proto: onnx.ModelProto) -> None:
    graph = view(Model("random", normalise(proto, "random")))
    data = made_up_frames(proto, True, 2)
    feeder = Feeder(graph.inputs, True)
    whole = Runner(proto, level="disabled")
    for names in frontiers(graph, 3):
        parts = split(graph, separate(graph, names), {})
        assert check_exact(whole, [Runner(part, level="disabled") for part in parts.protos().values()], feeder, data)


def test_the_bundle_says_what_it_is(bundle: Bundle) -> None:
    manifest, cut = bundle.manifest, bundle.manifest.cuts[0]
    assert manifest.name == "residual-net"
    assert manifest.batched
    assert cut.crossing[0].symbols.shape == (CHANNELS, SIDE, SIDE)
    assert cut.crossing[0].channel_axis == 0
    assert len(cut.qualities) >= 6
    assert manifest.outputs[0].kind == "probabilities"
    assert cut.head_inputs == ("x",)
    assert cut.tail_outputs == ("probabilities",)


def test_more_bits_cost_more_and_keep_more(bundle: Bundle) -> None:
    qualities = bundle.manifest.cuts[0].qualities
    assert qualities[0].payload_bytes < qualities[-1].payload_bytes
    assert qualities[-1].mean_deviation < qualities[0].mean_deviation / 10
    assert qualities[-1].agreement == 1.0


def test_both_ends_take_the_bundle_and_frames_of_all_qualities_share_a_batch(bundle: Bundle, net: Path) -> None:
    cut = bundle.manifest.cuts[0]
    head, tail = Head(bundle, cut), Tail(bundle, cut)
    batch = frames(len(cut.qualities), seed=9)
    expected = whole(net, batch)
    order = range(len(cut.qualities))
    symbols = [head.run([batch[q]], q).symbols for q in order]
    for q, made in enumerate(symbols):
        assert made[0].max() < cut.crossing[0].levels[q]
    answers = tail.run(symbols, list(order))
    np.testing.assert_allclose(answers[-1]["probabilities"], expected[-1], atol=0.01)
    alone = tail.run([symbols[2]], [2])[0]["probabilities"]
    np.testing.assert_allclose(answers[2]["probabilities"], alone, atol=1e-6)


def test_without_the_quantiser_the_tensors_cross_as_they_are(net: Path, tmp_path: Path) -> None:
    made = cut_model(net, "c2+r0", output=tmp_path / "b", quantiser=None)
    (cut,) = made.manifest.cuts
    assert [tensor.symbols.dtype for tensor in cut.crossing] == ["float32", "float32"]
    assert cut.quality_input is None
    assert len(cut.qualities) == 1
    x = frames(1)[0]
    answer = Tail(made, cut).run([Head(made, cut).run([x]).symbols], [0])[0]
    np.testing.assert_allclose(answer["probabilities"], whole(net, x[None])[0], atol=1e-6)


def test_steps_do_not_depend_on_values_that_a_relu_throws_away(net: Path, tmp_path: Path) -> None:
    before = cut_model(net, "c0", output=tmp_path / "a", calibrate=frames())
    after = cut_model(net, "r0", output=tmp_path / "b", calibrate=frames())
    pairs = zip(before.manifest.cuts[0].qualities, after.manifest.cuts[0].qualities, strict=True)
    assert all(abs(a.payload_bytes - b.payload_bytes) < 8 for a, b in pairs)


def test_a_signed_tensor_keeps_both_signs(net: Path, tmp_path: Path) -> None:
    made = cut_model(net, "add", output=tmp_path / "b", calibrate=frames(), quantiser=Quantiser(levels=(16, 1024)))
    (cut,) = made.manifest.cuts
    assert cut.crossing[0].symbols.dtype == "uint16"
    assert cut.qualities[-1].max_deviation < 1e-2


def test_a_fixed_batch_of_one_is_opened(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.op("Relu", b.conv("x"), name="r")
    x = b.op("Reshape", x, b.weight(np.array([1, -1], np.int64)), name="flat")
    b.op("MatMul", x, b.weight(b.rng.normal(0, 1, (CHANNELS * SIDE * SIDE, 5)).astype(np.float32)), name="logits")
    path = save(b.model(["logits"], shape=(1, CHANNELS, SIDE, SIDE)), tmp_path / "net.onnx")
    assert cut_model(path, "r", output=tmp_path / "b", calibrate=frames()).manifest.batched


def test_a_batch_that_mixes_its_frames_stays_closed(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.op("Relu", b.conv("x"), name="r")
    b.op("Softmax", b.op("Sub", x, b.op("ReduceMean", x, axes=[0], name="mean")), name="y", axis=0)
    path = save(b.model(["y"], shape=(1, CHANNELS, SIDE, SIDE)), tmp_path / "net.onnx")
    made = cut_model(path, "r", output=tmp_path / "b", calibrate=frames())
    assert not made.manifest.batched
    assert made.manifest.inputs[0].shape == (1, CHANNELS, SIDE, SIDE)
    cut = made.manifest.cuts[0]
    assert cut.crossing[0].symbols.shape == (1, CHANNELS, SIDE, SIDE)
    Tail(made, cut).run([Head(made, cut).run([frames(1)]).symbols], [0])


@pytest.mark.parametrize("opset", [8, 9, 11, 13, 17, 20])
def test_opsets(tmp_path: Path, opset: int) -> None:
    path = save(residual(opset), tmp_path / "net.onnx")
    assert cut_model(path, output=tmp_path / "b", calibrate=frames()).manifest.cuts[0].qualities[-1].agreement == 1.0


def pictures(folder: Path, count: int = 6) -> Path:
    rng = np.random.default_rng(3)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (SIDE * 2, SIDE * 3, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def picture_net(layout: str, dtype: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    b = GraphBuilder()
    x = b.op("Cast", "image", to=onnx.TensorProto.FLOAT)
    x = b.op("Transpose", x, perm=[0, 3, 1, 2]) if layout == "nhwc" else x
    kernel = b.weight(b.rng.normal(0, 0.3, (CHANNELS, 3, 3, 3)).astype(np.float32))
    x = b.op("Relu", b.op("Conv", x, kernel), name="r")
    b.op("Flatten", b.op("GlobalAveragePool", x), name="logits")
    shape = ["N", SIDE, SIDE, 3] if layout == "nhwc" else ["N", 3, SIDE, SIDE]
    proto = b.model(["logits"], ["image"], shape)
    proto.graph.input[0].type.tensor_type.elem_type = dtype
    return proto


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT16])
def test_preprocessing_becomes_part_of_the_head(tmp_path: Path, layout: str, dtype: int) -> None:
    path = save(picture_net(layout, dtype), tmp_path / "net.onnx")
    text = "order=bgr" if dtype == onnx.TensorProto.UINT8 else "order=bgr,scale=1/255,mean=0.1/0.2/0.3,std=1/2/3"
    made = cut_model(path, "r", output=tmp_path / "b", calibrate=pictures(tmp_path / "p"), preprocess=text)
    (spec,) = made.manifest.inputs
    assert (spec.dtype, spec.shape) == ("uint8", (SIDE, SIDE, 3))
    assert made.manifest.preprocess is not None
    picture = fit(load_image(tmp_path / "p" / "0.png"), made.manifest.preprocess)
    x = picture[..., ::-1]
    if dtype != onnx.TensorProto.UINT8:
        x = (x.astype(np.float32) / np.float32(255) - MEAN) / STD
    x = x.astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
    x = np.ascontiguousarray(x if layout == "nhwc" else x.transpose(2, 0, 1))[None]
    cut = made.manifest.cuts[0]
    top = len(cut.qualities) - 1
    answer = Tail(made, cut).run([Head(made, cut).run([picture], top).symbols], [top])[0]["logits"]
    expected = whole(path, x)[0]
    np.testing.assert_allclose(answer, expected, atol=0.01 * np.abs(expected).max())


def test_an_unreadable_picture_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(picture_net("nchw"), tmp_path / "net.onnx")
    folder = pictures(tmp_path / "p")
    (folder / "broken.jpg").write_bytes(b"no picture")
    cut_model(path, "r", output=tmp_path / "b", calibrate=folder, preprocess="size=6")
    assert "broken.jpg" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size=7", "the model takes 6x6"),
        ("colour=red", "not KEY=VALUE"),
        ("layout=nhwc", "the model's input is nchw"),
        ("mean=1/2", "one number or three"),
        ("std=0", "std is never 0"),
        ("order=grb", "order is one of"),
    ],
)
def test_preprocessing_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    path = save(picture_net("nchw"), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=words):
        cut_model(path, "r", output=tmp_path / "b", calibrate=tmp_path, preprocess=text)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"at": "add_"}, UnknownTensorError, "add"),
        ({"at": "c1"}, CutError, "leaks"),
        ({"calibrate": None}, UsageError, "needs data"),
        ({"calibrate": "nowhere.npz"}, SourceError, "no such file"),
        ({"calibrate": np.zeros((3, 2), np.float32)}, UsageError, "were expected"),
        ({"calibrate": frames(), "preprocess": "size=6"}, UsageError, "three colours"),
        ({"labels": "nowhere.txt"}, SourceError, "nowhere.txt"),
    ],
)
def test_bad_options_leave_nothing_behind(net: Path, tmp_path: Path, change: Any, error: Any, words: str) -> None:
    options = {"at": "r1", "calibrate": frames()} | change
    with pytest.raises(error, match=words):
        cut_model(net, output=tmp_path / "b", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"not a protobuf at all", b"\x08\x07\x12\x04test", b"PK\x03\x04" + b"\0" * 40]
)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"net\.onnx"):
        list_cuts(tmp_path / "net.onnx")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        list_cuts(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="cannot be imported"):
        list_cuts("no_such_package:build")


def test_a_folder_that_is_no_bundle_is_not_overwritten(net: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="is no bundle"):
        cut_model(net, "r1", output=tmp_path / "b", calibrate=frames())
    assert (tmp_path / "b" / "thesis.txt").exists()


def test_a_torch_module_is_exported_with_an_open_batch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own insides
        made = cut_model(model, output=tmp_path / "b", quantiser=None)
    assert made.manifest.batched


def test_opening_a_batch_leaves_the_model_alone() -> None:
    proto = residual(shape=(1, CHANNELS, SIDE, SIDE))
    before = proto.SerializeToString()
    with_batch(Model("test", proto))
    assert proto.SerializeToString() == before


REAL = {
    "mobilenet_v2_torchvision_dequant_fp32.onnx": "imagenet",
    "squeezenet_v1.0_deepcompression_fp32.onnx": "order=bgr,mean=104/117/123",
    "mobilenet_v2_1.0_224_tf_qdq_u8.onnx": "crop=0.875",
}


@pytest.mark.skipif(not FOLDER.is_dir(), reason=ABSENT)
@pytest.mark.parametrize("name", REAL)
def test_real_models_keep_their_answers_at_eight_bits(tmp_path: Path, name: str) -> None:
    with np.load(FOLDER / "data" / "imagenet500_256q90.npz") as pack:
        blob, offsets = pack["jpeg"].tobytes(), pack["off"]
    (tmp_path / "photos").mkdir()
    for i in range(0, 500, 16):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(blob[offsets[i] : offsets[i + 1]])
    path = FOLDER / "models" / name
    deepest = max(cut.depth for cut in list_cuts(path))
    cut = next(cut for cut in list_cuts(path) if cut.depth <= deepest / 2)
    made = cut_model(path, cut.name, output=tmp_path / "b", calibrate=tmp_path / "photos", preprocess=REAL[name])
    top = made.manifest.cuts[0].qualities[-1]
    assert top.agreement is not None
    assert top.agreement >= 0.96  # 32 photographs: at most one may tip over
    Head(made, made.manifest.cuts[0])
    Tail(made, made.manifest.cuts[0])
