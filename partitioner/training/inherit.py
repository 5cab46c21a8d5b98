"""A pair that inherits: the encoder begins with the teacher's own first layers, the decoder ends with the next ones.

Nothing that the teacher knows is learned anew. The bottleneck stands behind as many of its layers as the encoder's
budget has room for; those are kept as they are (a bottleneck put into a trained network: Eshratifar et al., BottleNet,
2019; Furutanpey et al., FrankenSplit, 2023). It begins as the Karhunen-Loève transform of what those layers put out:
the projection of patches onto their principal components, and back, which is the best linear bottleneck there is and
works before anything is learned: on 144×144 flowers 86 % right at 235 bytes (400 pictures), where random layers in the
same place had 71 % at 514 bytes after an epoch.
"""

from __future__ import annotations

import torch
from torch import nn

from ...runtime.errors import UsageError
from .design import Pair, budget_of
from .folding import folded
from .halves import Halves, between, nominal_stride, split_teacher, stem_at, stems
from .layers import convolution
from .options import TrainOptions
from .teacher import Pixels, Teacher, params_of

Tensor = torch.Tensor

_BATCH = 64


class Kept(nn.Module):
    """Layers of the teacher's that stay as they are while the rest learns, until they are told to learn as well."""

    def __init__(self, layers: nn.Module) -> None:
        """Keep a copy of `layers`, their batch normalisations folded in for good."""
        super().__init__()
        self.layers = folded(layers)
        self.learns = False

    def train(self, mode: bool = True) -> Kept:
        """Stay in evaluation mode, whatever is asked."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """As the teacher does, without gradients unless it learns."""
        if self.learns or not torch.is_grad_enabled():  # an exporter's graph is to hold the layers and nothing else
            made: Tensor = self.layers(x)
            return made
        with torch.no_grad():
            return self.layers(x)  # type: ignore[no-any-return]


class Refinement(nn.Module):
    """Two convolutions beside what goes past them; nothing but that at first."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(
            convolution(channels, inner, 3), nn.Conv2d(inner, channels, 3, padding=1, bias=False), last
        )

    def forward(self, x: Tensor) -> Tensor:
        """`float32 [B, C, H, W]`, the same shape."""
        made: Tensor = x + self.body(x)
        return made


def inherited(
    teacher: Teacher, halves: Halves, options: TrainOptions, pictures: Pixels, behind: str | None = None
) -> Pair:
    """Put a bottleneck into the layers that the pair is to replace.

    Args:
        teacher: whole.
        halves: taken apart where the decoder's output belongs.
        options: channels, stride and budget.
        pictures: `uint8 [N, height, width, 3]`, some hundreds, whose principal components are taken.
        behind: the module that the encoder keeps last; the deepest within the budget where None.

    Raises:
        UsageError: not even the teacher's first layers fit, the stride is smaller than theirs, or a patch has fewer
            components than the bottleneck has channels.
        CutError: `behind` does not separate the teacher, or nothing lies between it and the cut.
    """
    image = (teacher.preprocess.height, teacher.preprocess.width)
    budget = budget_of(teacher, halves, options)
    tried = [stem_at(teacher, behind)] if behind is not None else reversed(stems(teacher, halves.at))
    for stem in tried:
        channels, height, width = stem.shape
        side = options.stride // nominal_stride(stem.shape, image) if options.stride else 1
        if side < 1 or height % side or width % side or channels * side * side < options.channels:
            continue
        kept = Kept(stem.module)
        params = params_of(kept)
        inner = _inner(channels, options.channels, side, None if behind is not None else budget.params - params)
        if not inner or (behind is None and not budget.holds(params, stem.macs)):
            continue
        parts = split_teacher(teacher, stem.name, (halves.at,))
        narrow, widen = _transform(teacher, parts, pictures, (channels, inner, options.channels, side))
        encoder = nn.Sequential(kept, narrow).eval()
        refine = [Refinement(channels, options.decoder_width or 2 * channels) for _ in range(options.decoder_blocks)]
        rest = between(parts, halves.at)
        return Pair(encoder, nn.Sequential(widen, *refine, rest), has_stem=True, even=True)
    raise UsageError(
        f"no layers of {teacher.name} and a bottleneck of {options.channels} channels at this stride fit into "
        f"{budget.params:,} parameters and {budget.macs:,} MACs: raise --head-params or --head-macs, or change --stride"
    )


def _inner(channels: int, bottleneck: int, side: int, most_params: int | None) -> int:
    """Channels between the two steps of the projection, as many as parameters allow; 0 where too few are left."""
    if most_params is None:
        return channels
    inner = (most_params - 2 * bottleneck) // (channels + 1 + bottleneck * side * side)
    return min(channels, inner) if inner * side * side >= bottleneck else 0


@torch.no_grad()
def _transform(
    teacher: Teacher, parts: Halves, pictures: Pixels, sizes: tuple[int, int, int, int]
) -> tuple[nn.Module, nn.Module]:
    """Project each place onto the principal components of its channels, and patches of those onto theirs; and back.

    Args:
        teacher: for its normalisation.
        parts: taken apart behind the layers that are kept.
        pictures: `uint8 [N, height, width, 3]`.
        sizes: channels of the features, of the first projection, of the bottleneck, and the side of a patch.
    """
    channels, inner, bottleneck, side = sizes
    rows = (teacher.normalised(pictures[i : i + _BATCH]) for i in range(0, len(pictures), _BATCH))
    features = torch.cat([parts.front(x).to(torch.bfloat16) for x in rows])
    first, first_back = _projection(features, inner, 1)
    reduced = torch.cat([first(x.float()) for x in torch.split(features, _BATCH)])
    second, second_back = _projection(reduced, bottleneck, side)
    if inner == channels:  # the first step is a rotation, which the second can do as well
        second, second_back = _projection(features, bottleneck, side)
        return second, second_back
    return nn.Sequential(first, second), nn.Sequential(second_back, first_back)


def _projection(features: Tensor, count: int, side: int) -> tuple[nn.Conv2d, nn.ConvTranspose2d]:
    """Patches onto their first principal components, and back (the Karhunen-Loève transform)."""
    channels = features.shape[1]
    total, outer, seen = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for some in torch.split(features, _BATCH):
        patches = nn.functional.unfold(some.float(), side, stride=side).transpose(1, 2).flatten(0, 1).double()
        total, outer, seen = total + patches.sum(0), outer + patches.T @ patches, seen + len(patches)
    mean = total / seen
    _, vectors = torch.linalg.eigh(outer / seen - mean[:, None] * mean)
    components = vectors.flip(1)[:, :count].T.reshape(count, channels, side, side)
    forth, back = nn.Conv2d(channels, count, side, side), nn.ConvTranspose2d(count, channels, side, side)
    # Stationary pictures have one mean a channel, wherever in the patch.
    level = mean.reshape(channels, side * side).mean(1)
    assert forth.bias is not None
    assert back.bias is not None
    forth.weight.copy_(components)
    forth.bias.copy_(-(components.sum((2, 3)) @ level))
    back.weight.copy_(components)
    back.bias.copy_(level)
    return forth, back
