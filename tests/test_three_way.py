"""Head and final part on a device, body on a server: over the wire the answer is the uncut model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from material import model_path, photographs
from narrows.device import Device
from narrows.partitioner import Quantiser, cut_model
from narrows.runtime.bundle import Bundle
from narrows.runtime.images import fit, load_image
from narrows.server import ServeOptions, ServerThread
from test_partitioner_three_way import frames, skip_net


def answers(bundle: Bundle, inputs: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    with ServerThread(ServeOptions(bundle.root, port=0)) as server, Device(bundle, server.address) as device:
        outcomes = list(device.stream(inputs))
    assert [outcome.error for outcome in outcomes] == [None] * len(inputs)
    return [dict(outcome.outputs) for outcome in outcomes]


@pytest.mark.parametrize(("quantiser", "tolerance"), [(None, 1e-6), (Quantiser(levels=(16, 256)), 0.05)])
def test_a_small_model_over_the_wire(tmp_path: Path, quantiser: Quantiser | None, tolerance: float) -> None:
    onnx.save(skip_net(), tmp_path / "net.onnx")
    data = frames(32)
    bundle = cut_model(
        tmp_path / "net.onnx", "early", until="late", output=tmp_path / "b", calibrate=data, quantiser=quantiser
    )
    whole = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for x, answer in zip(data[:8], answers(bundle, list(data[:8])), strict=True):
        np.testing.assert_allclose(answer["y"], whole.run(None, {"x": x[None]})[0][0], atol=tolerance)


def test_a_real_model_over_the_wire(tmp_path: Path) -> None:
    """MobileNetV2, its input and its answer on the device alone."""
    path = model_path("mobilenet_v2_torchvision_dequant_fp32.onnx")
    pictures = photographs(tmp_path / "photos", 8)
    bundle = cut_model(
        path,
        "577_quantized",
        until="534_quantized",
        output=tmp_path / "b",
        calibrate=tmp_path / "photos",
        preprocess="imagenet",
        quantiser=None,
    )
    assert bundle.manifest.preprocess is not None
    whole = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    made = answers(bundle, [load_image(picture) for picture in pictures])
    for picture, answer in zip(pictures, made, strict=True):
        scaled = fit(load_image(picture), bundle.manifest.preprocess).astype(np.float32) / 255
        x = ((scaled - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])).transpose(2, 0, 1)
        expected = whole.run(None, {whole.get_inputs()[0].name: x[None].astype(np.float32)})[0][0]
        np.testing.assert_allclose(answer["output"], expected, atol=1e-4 * np.abs(expected).max())
