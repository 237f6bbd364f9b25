"""3D Gaussian splatting of one picture, as GaussianImage compares with it, through gsplat.

It has never been run on a GPU: its tests draw with a stand-in for gsplat in plain torch.
"""

import math

import torch
from torch import Tensor

from instantgi.fit.adan import Adan
from instantgi.metrics import ssim
from instantgi.render.splats import DEGREE, draw_splats
from instantgi.representations import Representation, Splats

OPACITY = 0.1  # at the start
CONSTANT = 0.5 / math.sqrt(math.pi)  # the harmonic of degree 0
ABSOLUTE_SHARE = 0.7  # of the loss


class Splatting:
    """Random Gaussians in space before one fixed camera, moved by Adan.

    Centers ~ U(−1, 1)³ at a depth of 8, sizes the mean distance to the three nearest, opacities
    0.1, colors ~ U(0, 1) through spherical harmonics of degree 3; loss 0.7 mean |error| + 0.3 (1 −
    SSIM). Rate 1e-3, halved every 20,000 steps like GaussianImage's (Zhang et al., 2024, table 1;
    constants of the code released with it). All of them start in the middle eighth of the picture.
    It has 59 numbers a Gaussian instead of 8, and no file holds them.

    Raises:
        RuntimeError: without an NVIDIA GPU, or gsplat.
        ValueError: if the picture is not RGB, or there is something to start from.
    """

    def __init__(self, rate: float = 1e-3, halve_every: int = 20_000):
        self.rate, self.halve_every = rate, halve_every

    def start(
        self, image: Tensor, init: Representation | None, num_gaussians: int, seed: int
    ) -> None:
        if len(image) != 3:
            raise ValueError(f"3dgs is of pictures in RGB, got {len(image)} channels")
        if init is not None:
            raise ValueError("3dgs starts from random Gaussians in space only")
        self.target, self.iteration = image.detach().float(), 0
        self.splats = self._random(num_gaussians, seed).to(image.device)
        draw_splats(self.splats)  # says at once if it cannot be drawn
        self.splats = self.splats.map(lambda field: field.requires_grad_())
        self.optimiser = Adan(self.splats.fields(), lr=self.rate)

    def step(self, progress: float) -> Tensor:
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * 0.5 ** (self.iteration // self.halve_every)
        self.iteration += 1
        with torch.enable_grad():
            drawn = draw_splats(self.splats)
            error = drawn - self.target
            similarity = ssim(drawn, self.target)
            loss = ABSOLUTE_SHARE * error.abs().mean() + (1 - ABSOLUTE_SHARE) * (1 - similarity)
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        self.optimiser.step()
        return error.detach().double().square().sum()

    def gaussians(self) -> Splats:
        return self.splats.map(lambda field: field.detach().clone())

    def _random(self, num: int, seed: int) -> Splats:
        random = torch.Generator().manual_seed(seed)
        means = torch.rand(num, 3, generator=random) * 2 - 1
        harmonics = torch.zeros(num, (DEGREE + 1) ** 2, 3)
        harmonics[:, 0] = (torch.rand(num, 3, generator=random) - 0.5) / CONSTANT
        return Splats(
            means,
            torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(num, 1),
            _distances(means).log()[:, None].repeat(1, 3),
            torch.full((num,), math.log(OPACITY / (1 - OPACITY))),
            harmonics,
            *self.target.shape[1:],
        )


def _distances(points: Tensor) -> Tensor:
    """Mean distance of each to the three nearest others, [N]."""
    from scipy.spatial import KDTree

    nearest, _ = KDTree(points.double().numpy()).query(points.double().numpy(), k=4)
    mean = torch.from_numpy(nearest[:, 1:]).float()
    # of fewer than four points some have no such neighbor, which is infinitely far
    return mean.masked_fill(mean.isinf(), 1.0).mean(1).clamp_min(1e-7)
