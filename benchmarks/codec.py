"""Bytes and speed of feature coders on symbols of real networks and real pictures.

    python benchmarks/codec.py [--images 32] [--json] [--cuts mobilenet-v2:14x14,...]

Every contender codes the same symbols in one thread of one process. Quantisers: "tensor" is one min-max range for the
whole tensor (today's practice); "channel" is this project's calibration, a clipped range per channel. Tables are
trained on other pictures than those coded. Contenders that are not installed (`pip install narrows[bench]`) are left
out, and named; CompressAI's needs `pip install --no-deps compressai`.
"""

from __future__ import annotations

import argparse
import io
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec

import numpy as np
import onnx
import onnxruntime as ort
import zstandard
from harness import jpegs, material, report
from narrows.partitioner.quantise import Histograms, Quantiser, RangeStatistics, solve
from narrows.runtime.codec import SymbolSpec, by_label, kernel_status, train_table
from PIL import Image

CALIBRATION = 96
BITS = (2, 3, 4, 8)
_MEAN, _STD = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


# -- features ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    name: str
    model: str
    pack: str
    split: str
    feed: Callable[[Image.Image], np.ndarray]
    cuts: dict[str, str]
    """Where it is narrow: spatial size -> tensor (the last one whose name ends so)."""


def _crop(image, side):
    w, h = image.size
    return np.asarray(image.crop(((w - side) // 2, (h - side) // 2, (w + side) // 2, (h + side) // 2)))


def _normalised(image):
    return ((np.asarray(image) / np.float32(255) - _MEAN) / _STD).transpose(2, 0, 1)


def _bgr(image):
    return (_crop(image, 227)[:, :, ::-1] - np.array([104, 117, 123], np.float32)).transpose(2, 0, 1)


_RESNET = {
    "32x32": "layer1.{}/Relu_1_output_0",
    "16x16": "layer2.{}/Relu_1_output_0",
    "8x8": "layer3.{}/Relu_1_output_0",
}
NETWORKS = (
    Network(
        "mobilenet-v2",
        "mobilenet_v2_torchvision_dequant_fp32.onnx",
        "imagenet500_256q90.npz",
        "",
        lambda image: _normalised(_crop(image, 224)),
        {
            "24x56x56": "351_quantized",
            "32x28x28": "376_quantized",
            "64x14x14": "440_quantized",
            "96x14x14": "478_quantized",
            "160x7x7": "516_quantized",
        },
    ),
    Network(
        "mobilenet-v2-qdq",
        "mobilenet_v2_1.0_224_tf_qdq_u8.onnx",
        "imagenet500_256q90.npz",
        "",
        lambda image: _crop(image, 224),
        {"64x14x14": "expanded_conv_9/add_prequant", "96x14x14": "expanded_conv_12/add_prequant"},
    ),
    Network(
        "squeezenet",
        "squeezenet_v1.0_deepcompression_fp32.onnx",
        "imagenet500_256q90.npz",
        "",
        _bgr,
        {
            "16x55x55": "fire3_relu_conv1x1_1_out",
            "48x27x27": "fire7_relu_conv1x1_1_out",
            "64x13x13": "fire9_relu_conv1x1_1_out",
            "512x13x13": "pool8_out",
        },
    ),
    *(
        Network(
            f"resnet{depth}",
            f"cifar10_resnet{depth}_jpegft.onnx",
            "cifar10_jpeg.npz",
            "_test",
            _normalised,
            {size: tensor.format(last) for size, tensor in _RESNET.items()},
        )
        for depth, last in ((20, 2), (56, 8))
    ),
)


def features(network: Network, images: int) -> Iterator[tuple[str, np.ndarray]]:
    """The name and float32 [images, channels, rows, cols] of each cut."""
    model = onnx.load(material() / "models" / network.model)
    outputs = [name for node in model.graph.node for name in node.output]
    wanted = [next(name for name in reversed(outputs) if name.endswith(end)) for end in network.cuts.values()]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in wanted)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    source = session.get_inputs()[0]
    dtype = np.uint8 if "uint8" in source.type else np.float32
    made = []
    for data in jpegs(network.pack, network.split, images):
        x = network.feed(Image.open(io.BytesIO(data)).convert("RGB"))
        made.append(session.run(None, {source.name: x[None].astype(dtype)}))
    for i, size in enumerate(network.cuts):
        yield f"{network.name} {size}", np.concatenate([run[i] for run in made]).astype(np.float32)


def quantised(x: np.ndarray, calibration: np.ndarray, kind: str, bits: int) -> np.ndarray:
    """uint8 symbols like `x`, by ranges seen in `calibration`."""
    axis = 1 if kind == "channel" else None
    ranges = RangeStatistics(axis)
    ranges.add(calibration)
    if axis is None:
        low, high = calibration.min(), calibration.max()
        step = (high - low) / ((1 << bits) - 1)
        return np.clip(np.floor((x - low) / step + 0.5), 0, (1 << bits) - 1).astype(np.uint8)
    histograms = Histograms(axis, *ranges.bounds())
    histograms.add(calibration)
    table = solve(histograms, Quantiser(levels=(1 << bits,)))
    step, zero = (v.reshape(1, -1, 1, 1) for v in (table.steps, table.zeros))
    return np.clip(np.floor(x / step + zero + 0.5), 0, (1 << bits) - 1).astype(np.uint8)


# -- contenders --------------------------------------------------------------------------------------------------------

Coder = tuple[Callable[[np.ndarray], object], Callable[[object], np.ndarray] | None, Callable[[object], int]]


def own(label: str, spec: SymbolSpec, table: bytes | None = None) -> Coder:
    bound = by_label(label).bind(spec, table)
    return bound.encode, bound.decode, len


def of_bytes(spec: SymbolSpec, compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes]) -> Coder:
    def decode(payload):
        return np.frombuffer(decompress(payload), spec.dtype).reshape(spec.shape)

    return lambda symbols: compress(symbols.tobytes()), decode, len


def huffman_only(data: bytes) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return squeezer.compress(data) + squeezer.flush()


def zstd(spec: SymbolSpec, level: int) -> Coder:
    return of_bytes(spec, zstandard.ZstdCompressor(level=level).compress, zstandard.ZstdDecompressor().decompress)


def static_tables(spec: SymbolSpec, frames: np.ndarray) -> Coder:
    """One frozen table per channel, by constriction's range-ANS coder: what a factorised prior comes to."""
    import constriction

    channels, levels = spec.shape[0], spec.levels
    counts = np.stack([np.bincount(frames[:, c].ravel(), minlength=levels) + 0.5 for c in range(channels)])
    family = constriction.stream.model.Categorical
    models = [family(p / p.sum(), perfect=False) for p in counts]
    area = spec.elements // channels

    def encode(symbols):
        coder = constriction.stream.stack.AnsCoder()
        rows = symbols.reshape(channels, area).astype(np.int32)
        for row, model in zip(rows[::-1], models[::-1], strict=True):
            coder.encode_reverse(row, model)
        return coder.get_compressed()

    def decode(words):
        coder = constriction.stream.stack.AnsCoder(words)
        return np.stack([coder.decode(model, area) for model in models]).reshape(spec.shape).astype(spec.dtype)

    return encode, decode, lambda words: 4 * len(words)


def entropy_bottleneck(spec: SymbolSpec, frames: np.ndarray) -> Coder:
    """CompressAI's `EntropyBottleneck` as it codes: a table and a tail per channel, Python lists in and out.

    Its compiled parts are loaded by themselves: the package imports data sets and point clouds that nothing here needs.
    """
    package = find_spec("compressai")
    if package is None:
        raise ImportError("No module named 'compressai'")

    def part(name):
        spec = PathFinder.find_spec(f"compressai.{name}", package.submodule_search_locations)
        if spec is None or spec.loader is None:
            raise ImportError(f"compressai without its compiled {name}")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    ans, quantise = part("ans"), part("_CXX").pmf_to_quantized_cdf
    channels, levels = spec.shape[0], spec.levels
    counts = [np.bincount(frames[:, c].ravel(), minlength=levels) + 0.5 for c in range(channels)]
    tail = 1e-6
    cdfs = [quantise([*((1 - tail) * count / count.sum()).tolist(), tail], 16) for count in counts]
    lengths, offsets = [levels + 2] * channels, [0] * channels
    indexes = np.repeat(np.arange(channels), spec.elements // channels)

    def encode(symbols):
        listed = symbols.reshape(-1).astype(np.int32).tolist()
        return ans.RansEncoder().encode_with_indexes(listed, indexes.tolist(), cdfs, lengths, offsets)

    def decode(data):
        listed = ans.RansDecoder().decode_with_indexes(data, indexes.tolist(), cdfs, lengths, offsets)
        return np.array(listed, spec.dtype).reshape(spec.shape)

    return encode, decode, len


def tiled(symbols: np.ndarray) -> np.ndarray:
    """Channels side by side as one picture."""
    c, h, w = symbols.shape
    across = int(np.ceil(np.sqrt(c)))
    padded = np.zeros((-(-c // across) * across, h, w), symbols.dtype)
    padded[:c] = symbols
    return np.ascontiguousarray(padded.reshape(-1, across, h, w).transpose(0, 2, 1, 3).reshape(-1, across * w))


def untiled(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    c, h, w = shape
    across = picture.shape[1] // w
    return picture.reshape(-1, h, across, w).transpose(0, 2, 1, 3).reshape(-1, h, w)[:c]


def pictures(spec: SymbolSpec, encode: Callable[[np.ndarray], bytes], decode: Callable[[bytes], np.ndarray]) -> Coder:
    return lambda symbols: encode(tiled(symbols)), lambda data: untiled(decode(data), spec.shape), len


def contenders(spec: SymbolSpec, training: np.ndarray) -> Iterator[tuple[str, Callable[[], Coder]]]:
    """Name and maker of each; a maker raises ImportError where its library is not installed."""
    yield "context, trained", lambda: own("context/1", spec, train_table(spec, training))
    yield "context, no table", lambda: own("context/1", spec)
    yield "bit-planes + zstd", lambda: own("bitplane-zstd/1", spec)
    yield "zstd -1", lambda: zstd(spec, 1)
    yield "zstd -3", lambda: zstd(spec, 3)
    yield "static per channel", lambda: static_tables(spec, training)
    yield "CompressAI bottleneck", lambda: entropy_bottleneck(spec, training)
    yield "zlib huffman only", lambda: of_bytes(spec, huffman_only, zlib.decompress)

    def brotli() -> Coder:
        import brotli

        return of_bytes(spec, lambda data: brotli.compress(data, quality=5), brotli.decompress)

    def blosc() -> Coder:
        import blosc2

        blosc2.set_nthreads(1)
        pack = {"typesize": 1, "clevel": 5, "filter": blosc2.Filter.BITSHUFFLE, "codec": blosc2.Codec.ZSTD}
        return of_bytes(spec, lambda data: blosc2.compress(data, **pack), blosc2.decompress)

    def jpegxl() -> Coder:
        import imagecodecs

        def encode(picture):
            return imagecodecs.jpegxl_encode(picture, lossless=True, effort=3, numthreads=1)

        return pictures(spec, encode, lambda data: imagecodecs.jpegxl_decode(data, numthreads=1))

    def webp() -> Coder:
        import imagecodecs

        def encode(picture):
            return imagecodecs.webp_encode(np.repeat(picture[..., None], 3, axis=2), lossless=True, level=100, method=2)

        return pictures(spec, encode, lambda data: np.ascontiguousarray(imagecodecs.webp_decode(data)[..., 0]))

    yield "brotli -5", brotli
    yield "blosc2 bitshuffle", blosc
    yield "JPEG XL lossless", jpegxl
    yield "WebP lossless", webp


def order0_bytes(symbols: np.ndarray, levels: int) -> float:
    """Bytes at the entropy of this very frame's channels: no table per channel can do better."""
    bits = 0.0
    for channel in symbols.reshape(len(symbols), -1):
        counts = np.bincount(channel, minlength=levels)
        counts = counts[counts > 0]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(coder: Coder, frames: np.ndarray) -> dict[str, float]:
    encode, decode, size = coder
    encode_s = decode_s = 0.0
    sizes = []
    assert np.array_equal(decode(encode(frames[0])), frames[0])
    for frame in frames:
        # The better of two: the machine may be busy with something else.
        times = []
        for _ in range(2):
            t0 = time.perf_counter()
            payload = encode(frame)
            t1 = time.perf_counter()
            decode(payload)
            times.append((t1 - t0, time.perf_counter() - t1))
        encode_s += min(t[0] for t in times)
        decode_s += min(t[1] for t in times)
        sizes.append(size(payload))
    return {
        "bytes": float(np.mean(sizes)),
        "p99": float(np.percentile(sizes, 99)),
        "encode_ms": 1e3 * encode_s / len(frames),
        "decode_ms": 1e3 * decode_s / len(frames),
    }


def compare(cut: str, x: np.ndarray, kind: str, bits: int) -> Iterator[dict[str, object]]:
    calibration, frames = x[:CALIBRATION], x[CALIBRATION:]
    training, frames = (quantised(part, calibration, kind, bits) for part in (calibration, frames))
    spec = SymbolSpec(frames.shape[1:], frames.dtype, 1 << bits, 0)
    where = {"cut": cut, "quantiser": kind, "bits": bits, "symbols": spec.elements}
    for name, make in contenders(spec, training):
        try:
            coder = make()
        except ImportError as error:
            left_out(name, str(error))
            continue
        yield where | {"coder": name} | measure(coder, frames)
    entropy = float(np.mean([order0_bytes(frame, 1 << bits) for frame in frames]))
    yield where | {"coder": "order-0 entropy", "bytes": entropy, "p99": entropy, "encode_ms": 0.0, "decode_ms": 0.0}


@cache
def left_out(name: str, why: str) -> None:
    _LEFT_OUT.append(f"{name} ({why})")


_LEFT_OUT: list[str] = []


def summary(rows: Sequence[dict[str, object]], bits: Sequence[int]) -> list[dict[str, object]]:
    """Per coder: geometric means of its bytes against zstd -1's and the static tables', and its speed."""
    rows = [row for row in rows if row["bits"] in bits]
    places = {(r["cut"], r["quantiser"], r["bits"]): {} for r in rows}
    for r in rows:
        places[r["cut"], r["quantiser"], r["bits"]][r["coder"]] = r
    out = []
    for name in dict.fromkeys(r["coder"] for r in rows):
        mine = [place[name] for place in places.values()]
        symbols = sum(r["symbols"] for r in mine)

        def against(other, name=name):
            pairs = [(p[name]["bytes"], p[other]["bytes"]) for p in places.values() if other in p]
            return float(np.mean([a / b for a, b in pairs])) if pairs else float("nan")

        def speed(key, mine=mine, symbols=symbols):
            total = sum(r[key] for r in mine)
            return symbols / 1e3 / total if total else float("nan")

        out.append(
            {
                "coder": name,
                "to zstd -1": against("zstd -1"),
                "to static": against("static per channel"),
                "bytes": float(np.mean([r["bytes"] for r in mine])),
                "p99": float(np.mean([r["p99"] for r in mine])),
                "encode MB/s": speed("encode_ms"),
                "decode MB/s": speed("decode_ms"),
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32, help="frames coded per cut")
    parser.add_argument("--cuts", default="", help="parts of the cuts' names, comma-separated; all of them by default")
    parser.add_argument("--bits", default=",".join(map(str, BITS)))
    parser.add_argument("--rows", action="store_true", help="print every cut, too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bits = [int(b) for b in args.bits.split(",")]
    rows = []
    for network in NETWORKS:
        for cut, x in features(network, CALIBRATION + args.images):
            if any(part in cut for part in args.cuts.split(",")):
                rows += [r for kind in ("tensor", "channel") for b in bits for r in compare(cut, x, kind, b)]
    note = f"{kernel_status()}; single thread; left out: {', '.join(_LEFT_OUT) or 'none'}"
    if args.json:
        report("feature coders", rows, as_json=True, note=note)
        return
    if args.rows:
        report("every cut", rows, as_json=False)
    for chosen in ([b for b in bits if b <= 4], [b for b in bits if b > 4]):
        if chosen:
            title = f"{'/'.join(map(str, chosen))} bits: mean of ratios over all cuts and both quantisers"
            report(title, summary(rows, chosen), as_json=False, note=note)


if __name__ == "__main__":
    main()
