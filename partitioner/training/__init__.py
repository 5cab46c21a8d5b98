"""Bottlenecks that are trained in: a teacher's early layers give way to an encoder and a decoder.

teacher = Teacher.load("models:resnet20", weights="resnet20.pt", preprocess="imagenet")
data = read_data("cifar.npz", teacher.preprocess)
trained = train(teacher, data, TrainOptions(method="ladder", target_bytes=(40, 80, 160)), output="runs/ladder")
bundle = export(trained, data, output="bundles/ladder")
"""

from .data import ImageData, Part, read_data
from .design import Design, Pair, Price
from .options import TrainOptions
from .record import Recorder
from .run import Trained, train
from .teacher import Teacher, split_teacher

__all__ = [
    "Design",
    "ImageData",
    "Pair",
    "Part",
    "Price",
    "Recorder",
    "Teacher",
    "TrainOptions",
    "Trained",
    "read_data",
    "split_teacher",
    "train",
]
