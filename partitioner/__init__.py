"""Model in, bundle out: the only room that knows torch and onnx.

for cut in list_cuts("model.onnx"):
    print(cut.name, cut.symbol_bytes, cut.head_flops)
bundle = cut_model("model.onnx", cut.name, output="bundles/model", calibrate="photos/", preprocess="imagenet")
"""

from .build import cut_model, list_cuts
from .load import load
from .model import Model
from .points import CutPoint, CutTensor
from .quantise import Quantiser

__all__ = ["CutPoint", "CutTensor", "Model", "Quantiser", "cut_model", "list_cuts", "load"]
