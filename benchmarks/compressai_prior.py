"""The bytes that CompressAI's factorised prior needs for a student's very symbols.

Both coders are lossless, so at equal symbols accuracy is equal and bytes alone differ. The prior learns the symbols of
training pictures by its own noise relaxation, as its authors train it, and codes those of the test pictures.
"""

from __future__ import annotations

import numpy as np

_STEPS, _RATE, _BATCH = 600, 1e-2, 32


def available() -> bool:
    """Whether CompressAI and what it imports are installed."""
    import teachers  # whoever has a CPU build of torch needs torchvision's operators declared first

    try:
        teachers.declare_torchvision()
        import compressai.entropy_models  # noqa: F401
    # A package that it needs is missing, or torchvision does not load beside this torch.
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def payload_bytes(training: np.ndarray, symbols: np.ndarray, middle: int) -> float:
    """Mean bytes of a frame.

    Args:
        training: `uint8 [N, C, H, W]`, of training pictures.
        symbols: `uint8 [M, C, H, W]`, to be coded.
        middle: the symbol of zero.
    """
    import torch
    from compressai.entropy_models import EntropyBottleneck

    torch.manual_seed(0)
    prior = EntropyBottleneck(symbols.shape[1])
    seen = torch.from_numpy(training.astype(np.float32) - middle)
    own = [p for name, p in prior.named_parameters() if name != "quantiles"]
    optimiser = torch.optim.Adam(own, _RATE)
    quantiles = torch.optim.Adam([prior.quantiles], 10 * _RATE)
    for step in range(_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1 - step / _STEPS)
        rows = torch.randint(0, len(seen), (_BATCH,))
        _, likelihood = prior(seen[rows], training=True)
        optimiser.zero_grad()
        (-likelihood.log2().mean()).backward()
        optimiser.step()
        quantiles.zero_grad()
        prior.loss().backward()
        quantiles.step()
    prior.eval()
    prior.update(force=True)
    with torch.no_grad():
        coded = [prior.compress(torch.from_numpy(one[None].astype(np.float32) - middle))[0] for one in symbols]
    return float(np.mean([len(payload) for payload in coded]))
