"""Where a fit starts from a network's Gaussians, and how it moves from there."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.fit.local_adam import LocalAdam
from instantgi.gaussians import Gaussians

SHORT = 75  # steps; fits of fewer start from what the network's looks made
LONG = 300  # steps; fits of more do no better from a network (docs/results.md)
NARROW = 8  # pixels; twice the side of a cell of the network
PIXELS_A_SECOND = 40e6  # that a fit limited by time passes in its steps, roughly


def expected_steps(
    height: int, width: int, iterations: int | None = None, seconds: float | None = None
) -> float:
    """How many steps a fit with these limits will take, at most."""
    steps = math.inf if iterations is None else iterations
    in_time = math.inf if seconds is None else seconds * PIXELS_A_SECOND / (height * width)
    return min(steps, in_time)


def is_ahead(
    height: int, width: int, iterations: int | None = None, seconds: float | None = None
) -> bool:
    """Whether such a fit ends at or above that from the heuristic start.

    At equal steps it does up to LONG of them. In equal seconds, if they are enough for the network
    itself, about 35 steps' time, to pay; docs/results.md has both races. Not in pictures that are
    narrower than what it sees at once.
    """
    if min(height, width) < NARROW:
        return False
    is_long = expected_steps(height, width, iterations, seconds) > LONG
    return not is_long and expected_steps(height, width, seconds=seconds) >= SHORT


@torch.no_grad()
def network_start(
    network: Callable[..., Gaussians],
    image: Float[Tensor, "C H W"],
    num_gaussians: int | None = None,
    patch_size: int = 3,
    steps: float = 0,
) -> Gaussians:
    """The Gaussians from which a fit of so many steps should start.

    The longer a fit, the less is left of the picture that it starts from, and the more room to
    move helps: smaller ellipses, down to 0.8 of their size from 50 steps on, and those of the
    fields alone from 75 on.

    Args:
        network: an `InstantGI`.
        num_gaussians, patch_size: see `InstantGI.forward`.
    """
    looks = None if steps < SHORT else 0
    made = network(image, num_gaussians=num_gaussians, patch_size=patch_size, looks=looks)
    size = max(0.8, 1 - steps / 250)
    return Gaussians(made.means, size * made.cholesky, made.colors / size**2)


def network_fit(steps: float) -> LocalAdam:
    """How a fit of so many steps moves from there: the shorter, the less."""
    if steps < 40:
        return LocalAdam(rate=0.2, color_rate=0.06, warm_up=10)
    return LocalAdam(memory=3, warm_up=6) if steps < SHORT else LocalAdam()
