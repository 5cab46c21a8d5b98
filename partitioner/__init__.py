"""Model in, bundle out: the only room that knows torch and onnx.

for cut in list_cuts("model.onnx"):
    print(cut.name, cut.symbol_bytes, cut.head_flops)
bundle = cut_model("model.onnx", cut.name, output="bundles/model", calibrate="photos/", preprocess="imagenet")
"""

from .build import Prepared, cut_model, list_cuts, prepare
from .load import load
from .merge import can_merge, merge_bundles
from .model import Model
from .node_times import Survey, survey
from .points import CutPoint, CutTensor
from .preprocess import parse as parse_preprocess
from .quantise import Quantiser
from .whole import add_whole

__all__ = [
    "CutPoint",
    "CutTensor",
    "Model",
    "Prepared",
    "Quantiser",
    "Survey",
    "add_whole",
    "can_merge",
    "cut_model",
    "list_cuts",
    "load",
    "merge_bundles",
    "parse_preprocess",
    "prepare",
    "survey",
]
