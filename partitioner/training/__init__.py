"""Bottlenecks that are trained in: a teacher's early layers give way to an encoder and a decoder.

teacher = Teacher.load("models:resnet20", weights="resnet20.pt", preprocess="imagenet")
data = read_data("cifar.npz", teacher.preprocess)
trained = train(teacher, data, TrainOptions(method="ladder", target_bytes=(40, 80, 160)), output="runs/ladder")
bundle = export(trained, data, output="bundles/ladder")
"""

from .batches import AUGMENTATIONS, Augmentation
from .data import DataOptions, ImageData, Part, read_data
from .design import Design, Pair, Price
from .export import Exported, export
from .halves import split_teacher
from .heads import Task, train_task
from .options import DEFAULT_BETA, TrainOptions
from .recipe import Report, run_recipe
from .record import Recorder
from .run import Trained, train
from .teacher import Teacher

__all__ = [
    "AUGMENTATIONS",
    "DEFAULT_BETA",
    "Augmentation",
    "DataOptions",
    "Design",
    "Exported",
    "ImageData",
    "Pair",
    "Part",
    "Price",
    "Recorder",
    "Report",
    "Task",
    "Teacher",
    "TrainOptions",
    "Trained",
    "export",
    "read_data",
    "run_recipe",
    "split_teacher",
    "train",
    "train_task",
]
