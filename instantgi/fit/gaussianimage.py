"""GaussianImage (ECCV 2024) as published, on our kernels; see docs/results.md for what differs."""

from typing import Literal

import torch
from torch import Tensor

from instantgi.fit.adan import Adan
from instantgi.gaussians import Gaussians, cholesky_from_scales_rotations
from instantgi.render.ops import mean_squared_error, to_blocks


class GaussianImage:
    """Random Gaussians moved by Adan on the mean squared error of the clamped picture.

    Positions are (tanh(raw) + 1) / 2 of the picture's width and height, raw = atanh(U(−1, 1)).
    "cholesky": (l11, l21, l22) = raw + (0.5, 0, 0.5) px, raw ~ U(0, 1). "rs": standard deviations
    |raw + 0.5| px, angle 2π sigmoid(raw), both raw ~ U(0, 1). Colors ~ U(0, 1), used as they are.
    Adan with rate 1e-3, halved every 20,000 steps (Zhang et al., 2024, sections 3.2 and 4.1).

    Not as published, because it was wrong: every Gaussian is drawn, not the first 256 of a tile;
    its extent is the ellipse's own and not a square of ⌈3 √λ⌉ pixels; the gradient of the
    covariance is exact; pixel centers are at j + 0.5.
    """

    def __init__(
        self,
        shape: Literal["cholesky", "rs"] = "cholesky",
        rate: float = 1e-3,
        halve_every: int = 20_000,
    ):
        if shape not in ("cholesky", "rs"):
            raise ValueError(f'shape must be "cholesky" or "rs", got "{shape}"')
        self.shape, self.rate, self.halve_every = shape, rate, halve_every

    def start(self, image: Tensor, init: Gaussians | None, num_gaussians: int, seed: int) -> None:
        self.height, self.width = image.shape[1:]
        self.size = torch.tensor([self.width, self.height])
        self.target, self.iteration = to_blocks(image.detach().float()), 0
        raw = self._random(num_gaussians, len(image), seed) if init is None else self._inverse(init)
        self.positions, self.shapes, self.colors = (part.clone().requires_grad_() for part in raw)
        self.optimizer = Adan([self.positions, self.shapes, self.colors], lr=self.rate)

    def step(self, progress: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * 0.5 ** (self.iteration // self.halve_every)
        fields = (self._means(), self._cholesky(), self.colors)
        loss = mean_squared_error(*fields, self.target, self.height, self.width, clamp=True)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        return loss.detach().double() * self.height * self.width * self.colors.shape[1]

    def gaussians(self) -> Gaussians:
        return Gaussians(self._means(), self._cholesky(), self.colors).map(
            lambda x: x.detach().clone()
        )

    def _means(self) -> Tensor:
        return (self.positions.tanh() + 1) * self.size / 2

    def _cholesky(self) -> Tensor:
        if self.shape == "cholesky":
            return self.shapes + self.shapes.new_tensor([0.5, 0.0, 0.5])
        scales, angles = (
            (self.shapes[:, :2] + 0.5).abs(),
            2 * torch.pi * self.shapes[:, 2].sigmoid(),
        )
        return cholesky_from_scales_rotations(scales, angles)

    @staticmethod
    def _random(num: int, channels: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        # never ±1 itself: its atanh is infinite
        places = torch.rand(num, 2, generator=random).clamp(1e-6, 1 - 1e-6) * 2 - 1
        shapes, colors = (
            torch.rand(num, 3, generator=random),
            torch.rand(num, channels, generator=random),
        )
        return places.atanh(), shapes, colors

    def _inverse(self, init: Gaussians) -> tuple[Tensor, Tensor, Tensor]:
        """Raw parameters of given Gaussians; means outside the picture go to its border."""
        init = init.detach().to(torch.float32)
        places = (init.means / self.size * 2 - 1).clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        if self.shape == "cholesky":
            return places, init.cholesky - init.cholesky.new_tensor([0.5, 0.0, 0.5]), init.colors
        scales, rotations = init.scales_rotations
        turns = (rotations / (2 * torch.pi) - 0.25) % 0.5 + 0.25  # the same axes, far from 0 and 1
        return places, torch.cat([scales - 0.5, turns.logit()[:, None]], -1), init.colors
