"""What a training is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ...runtime.cores import available_cores
from ...runtime.errors import UsageError
from .batches import Augmentation

Method = Literal["bottlefit", "entropic", "ladder"]
Activation = Literal["auto", "relu", "gdn"]
Precision = Literal["float32", "bfloat16"]
Relaxation = Literal["straight-through", "noise"]

AUTO = "auto"
NO_STEM = "none"

DEFAULT_BETA = (1e-3,)
_MOST_WORKERS = 4
MAX_LEVELS = 256
"""A trained bottleneck's symbols fit into one byte."""


@dataclass(frozen=True)
class TrainOptions:
    """How a bottleneck is trained. Lengths of stages are in epochs, rates in bytes a frame."""

    method: Method = "bottlefit"
    """`bottlefit`: a fixed alphabet, no rate term. `entropic`: a learned prior and one rate. `ladder`: a learned prior
    and several rates in one pair of graphs."""
    channels: int = 12
    """Channels of the bottleneck."""
    stride: int | None = None
    """Pixels of the picture a side to one column of the bottleneck; twice the cut's own where None."""
    levels: int | None = None
    """Size of the alphabet: 8 for `bottlefit`, whose rate it decides. The other methods let the rate term decide how
    much of the alphabet is used, and need room alone: 16, which the coder takes as one digit, or more where the target
    is above three bits a symbol."""
    target_bytes: tuple[float, ...] = ()
    """Bytes a frame to train for, smallest first: one for `entropic`, one a quality for `ladder`. The multiplier of the
    rate then follows from the target. Empty: `beta` says what a byte costs."""
    beta: tuple[float, ...] = DEFAULT_BETA
    """Loss for each byte of a frame, one a quality, in the order of the qualities (so falling). Used where there is no
    target."""

    head_macs: int | None = None
    """Most multiply-accumulates of the encoder for one picture; half of the teacher's own head where None."""
    head_params: int | None = None
    """Most parameters of the encoder; a 90th of a teacher of a million or more, a third of a smaller one's."""
    stem: str = AUTO
    """The module of the teacher up to which the encoder is the teacher's own; `none` for none. `auto`: as much as the
    budget has room for under a teacher of a million parameters or more, and else none."""
    inherit: bool = False
    """The encoder is the teacher's own first layers, kept as they are, and a projection onto principal components; the
    decoder goes back and on with the teacher's next layers (`inherit.py`). It answers before anything is learned, so
    few epochs are enough. Otherwise all but the stem begins from nothing."""
    decoder_width: int | None = None
    """Channels inside the decoder; twice those of the teacher's features, from 32 to 128, where None."""
    decoder_blocks: int = 2
    """Residual blocks of the decoder, at the bottleneck's size."""
    activation: Activation = "auto"
    """Of the encoder: `gdn` is the paper's; `auto` takes it where ONNX Runtime runs it nearly as fast as a ReLU."""

    epochs: tuple[int, ...] = (10, 20)
    """Of stage 1 (features), stage 2 (fine-tuning) and, where there is a third number, a stage in which everything
    learns at once, frozen encoders and inherited layers too."""
    batch: int = 128
    rates: tuple[float, ...] = (2e-3, 1e-3)
    """Largest learning rate of each stage; AdamW, one cycle with a cosine's fall."""
    kept_rate: float = 0.5
    """Of these, for what comes from the teacher: stem and tail."""
    weight_decay: float = 1e-4
    freeze_encoder: bool | None = None
    """In stage 2. None: as the method has it (`entropic` yes, the others no)."""
    taps: tuple[str, ...] | None = None
    """Modules behind the cut whose outputs are restored too; None: two, evenly spread. () for none."""
    temperature: float = 4.0
    """Of the distillation, both in stage 1 (through the frozen tail) and in stage 2."""
    answer_weight: float = 1.0
    """In stage 1, of the distillation of the answer beside that of the features; 0 is the papers'."""
    distil_weight: float = 0.9
    """Share of the distillation in stage 2; the rest is cross-entropy with the labels."""
    relaxation: Relaxation = "straight-through"
    """What stands for rounding on the way to the decoder; the rate always sees additive noise."""
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 - frozen
    """What may happen to a picture, in both stages."""

    exit: bool = False
    """Train an early exit at the bottleneck as well."""
    averaged: bool = True
    """Judge and keep the mean of the last steps' weights and not the last weights."""
    patience: int | None = None
    """Stop a stage after so many epochs without a better validation loss."""
    seed: int = 0
    threads: int = 0
    """Of torch; 0 leaves it as it is."""
    workers: int = 0
    """Threads that prepare batches; 0: half of the cores, four at most. Batches are the same for any number."""
    device: str = "cpu"
    precision: Precision = "float32"
    """`bfloat16` computes convolutions in it: for accelerators, and for processors that have it (AVX512-BF16, AMX).
    Quantiser, prior and losses stay float32, and so does everything that is measured."""
    views: int = 0
    """Augmented versions of each picture, which epochs meet in turn; what the teacher makes of them is kept in memory.
    Where the teacher is half of the work, that is time for twice the epochs. 0: new versions all the time."""
    checkpoint_s: float = 60.0
    """Seconds between checkpoints inside an epoch; one is written after every epoch besides."""

    def __post_init__(self) -> None:
        for name, kind in (("method", Method), ("activation", Activation), ("precision", Precision)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"{name} is one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
        if self.relaxation not in get_args(Relaxation):
            raise UsageError(f"relaxation is one of {', '.join(get_args(Relaxation))}, not {self.relaxation!r}")
        if not 1 <= self.channels <= 4096:
            raise UsageError(f"a bottleneck has 1 to 4096 channels, not {self.channels}")
        if self.levels is not None and not 2 <= self.levels <= MAX_LEVELS:
            raise UsageError(f"an alphabet has 2 to {MAX_LEVELS} symbols, not {self.levels}")
        if self.stride is not None and self.stride < 1:
            raise UsageError(f"the stride is 1 or more, not {self.stride}")
        if list(self.target_bytes) != sorted(self.target_bytes) or any(t <= 0 for t in self.target_bytes):
            raise UsageError(f"target bytes are above 0 and rise, not {self.target_bytes}")
        if not self.beta or list(self.beta) != sorted(self.beta, reverse=True) or self.beta[-1] < 0:
            raise UsageError(f"beta falls from quality to quality and is never below 0, not {self.beta}")
        if self.method != "ladder" and max(len(self.target_bytes), len(self.beta)) > 1:
            raise UsageError(f"{self.method} trains one rate; several need the method ladder")
        if self.method == "bottlefit" and self.target_bytes:
            raise UsageError("bottlefit has no rate term, so no target: say --levels and --channels instead")
        if not 0 <= self.distil_weight <= 1:
            raise UsageError(f"distillation has a share of the loss, 0 to 1, not {self.distil_weight}")
        if self.temperature <= 0:
            raise UsageError(f"answers are softened by a temperature above 0, not {self.temperature}")
        self._check_stages()

    def _check_stages(self) -> None:
        if min(self.views, self.workers) < 0:
            raise UsageError(f"views and workers are 0 or more, not {self.views} and {self.workers}")
        if min(self.epochs) < 0 or sum(self.epochs) < 1 or self.batch < 2 or min(self.rates) <= 0:
            raise UsageError("epochs are 0 or more with one in all, a batch has 2 or more, learning rates are above 0")
        if len(self.epochs) not in (2, 3) or len(self.rates) != len(self.epochs):
            raise UsageError(
                f"two or three stages have as many epochs and learning rates, not {self.epochs} and {self.rates}"
            )

    @property
    def preparing(self) -> int:
        """Threads that prepare batches."""
        return self.workers or max(1, min(_MOST_WORKERS, available_cores() // 2))

    @property
    def qualities(self) -> int:
        """How many rungs the exported ladder has."""
        return max(1, len(self.target_bytes) or len(self.beta)) if self.method == "ladder" else 1

    @property
    def rated(self) -> bool:
        """Whether the loss has a rate term."""
        return self.method != "bottlefit"

    @property
    def encoder_frozen(self) -> bool:
        """Whether stage 2 leaves encoder, quantiser and prior as they are."""
        return self.method == "entropic" if self.freeze_encoder is None else self.freeze_encoder
