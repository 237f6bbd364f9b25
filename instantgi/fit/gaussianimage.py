"""GaussianImage (ECCV 2024) as published, on our kernels; see docs/results.md for what differs."""

from typing import Literal

import torch
from torch import Tensor

from instantgi import native
from instantgi.fit.adan import BETAS, EPSILON, adan_schedule
from instantgi.fit.replay import SORT_EVERY, Replay, Schedule
from instantgi.gaussians import Gaussians
from instantgi.render.ops import (
    PARAMETERS,
    order_by_place,
    rasterize_error,
    rasterize_error_backward,
    to_blocks,
)
from instantgi.representations import Representation, plain

torch.library.define(
    "instantgi::gaussianimage",
    "(Tensor raw, int height, int width, bool is_rs) -> (Tensor, Tensor)",
)
torch.library.define(
    "instantgi::gaussianimage_backward",
    "(Tensor raw, Tensor grad_geometry, int height, int width, bool is_rs) -> Tensor",
)


@torch.library.impl("instantgi::gaussianimage", "cpu")
def _(raw, height, width, is_rs):
    """Means [N, 2] and Cholesky factors [N, 3] of raw parameters [5, N], see `GaussianImage`."""
    num = raw.shape[1]
    means, cholesky = raw.new_empty(num, 2), raw.new_empty(num, 3)
    size = (float(width), float(height))
    native.call_cpu("gaussianimage", num, raw.contiguous(), *size, int(is_rs), means, cholesky)
    return means, cholesky


def gaussianimage_cuda(raw, height, width, is_rs):
    num = raw.shape[1]
    means, cholesky = raw.new_empty(num, 2), raw.new_empty(num, 3)
    arguments = (num, raw.contiguous(), float(width), float(height), int(is_rs), means, cholesky)
    native.call_cuda("gaussianimage", "gaussianimage", -(-num // 128), 128, *arguments)
    return means, cholesky


torch.library.impl("instantgi::gaussianimage", "cuda", gaussianimage_cuda)


@torch.library.impl("instantgi::gaussianimage_backward", "cpu")
def _(raw, grad_geometry, height, width, is_rs):
    """Gradient of raw [5, N] from that of means and Cholesky factors, [N, 5]."""
    grad_raw, size = torch.empty_like(raw), (float(width), float(height))
    tensors = (raw.contiguous(), *size, int(is_rs), grad_geometry.contiguous(), grad_raw)
    native.call_cpu("gaussianimage_backward", raw.shape[1], *tensors)
    return grad_raw


def gaussianimage_backward_cuda(raw, grad_geometry, height, width, is_rs):
    grad_raw, num = torch.empty_like(raw), raw.shape[1]
    size = (float(width), float(height))
    arguments = (num, raw.contiguous(), *size, int(is_rs), grad_geometry.contiguous(), grad_raw)
    native.call_cuda("gaussianimage", "gaussianimage_backward", -(-num // 128), 128, *arguments)
    return grad_raw


torch.library.impl("instantgi::gaussianimage_backward", "cuda", gaussianimage_backward_cuda)


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

    def start(
        self, image: Tensor, init: Representation | None, num_gaussians: int, seed: int
    ) -> None:
        init = None if init is None else plain(init, "gaussianimage")
        self.height, self.width = image.shape[1:]
        self.target, self.iteration = to_blocks(image.detach().float()), 0
        raw = self._random(num_gaussians, len(image), seed) if init is None else self._inverse(init)
        raw = tuple(part.to(image.device) for part in raw)
        self.geometry = torch.cat(raw[:2], 1).T.contiguous()  # [5, N]
        self.colors = raw[2].clone(memory_format=torch.contiguous_format)
        self.moments = [torch.zeros(4, *t.shape).to(t) for t in (self.geometry, self.colors)]
        self.order = self._by_place()
        self.schedule = Schedule(9, image.device)
        self.replay = Replay(image.device)

    def step(self, progress: float) -> Tensor:
        rate = self.rate * 0.5 ** (self.iteration // self.halve_every)
        self.iteration += 1
        self.schedule.set(*adan_schedule(rate, BETAS, EPSILON, self.iteration))
        if self.iteration % SORT_EVERY == 0:
            self.order.copy_(self._by_place())
        return self.replay(self._move)

    def _move(self) -> Tensor:
        scene, size = (*self._activated(), self.colors), (self.height, self.width)
        residual, squares = rasterize_error(*scene, self.target, *size, True, self.order)
        # of the mean of the squares, which is what Adan's epsilon is measured against
        scale = 2 / (self.colors.shape[1] * self.height * self.width)
        grads = rasterize_error_backward(residual, *scene, *size, scale, PARAMETERS, self.order)
        raw_gradient = torch.ops.instantgi.gaussianimage_backward(
            self.geometry, grads[0], *size, self.shape == "rs"
        )
        parameters, gradients = (self.geometry, self.colors), (raw_gradient, grads[1])
        for parameter, gradient, moments in zip(parameters, gradients, self.moments, strict=True):
            torch.ops.instantgi.adan_(parameter, gradient, moments, self.schedule.now)
        return squares

    def _by_place(self) -> Tensor:
        return order_by_place(self._activated()[0], self.height, self.width)

    def gaussians(self) -> Gaussians:
        return Gaussians(*self._activated(), self.colors.detach().clone())

    def _activated(self) -> tuple[Tensor, Tensor]:
        return torch.ops.instantgi.gaussianimage(
            self.geometry, self.height, self.width, self.shape == "rs"
        )

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
        size = init.means.new_tensor([self.width, self.height])
        places = (init.means / size * 2 - 1).clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        if self.shape == "cholesky":
            return places, init.cholesky - init.cholesky.new_tensor([0.5, 0.0, 0.5]), init.colors
        scales, rotations = init.scales_rotations
        turns = (rotations / (2 * torch.pi) - 0.25) % 0.5 + 0.25  # the same axes, far from 0 and 1
        return places, torch.cat([scales - 0.5, turns.logit()[:, None]], -1), init.colors
