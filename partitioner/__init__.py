"""Model in, bundle out: the only room that knows torch and onnx."""

from .build import cut_model, list_cuts
from .cuts import CutPoint
from .quantise import Quantiser

__all__ = ["CutPoint", "Quantiser", "cut_model", "list_cuts"]
