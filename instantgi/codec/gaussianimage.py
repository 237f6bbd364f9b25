"""GaussianImage's own compression as published, to compare with: trained quantisers, fixed lengths.

Zhang et al., 2024, section 3.3, and the code of its authors: a fit, then as many steps again with
positions as half floats, Cholesky factors in 6 bits by learned scales and offsets (LSQ+), colors as
the sum of one of 8 codewords in each of 2 stages (residual vector quantisation).
"""

import dataclasses
import math
import struct

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.codec.bitstream import FormatError
from instantgi.fit import GaussianImage, fit_image
from instantgi.fit.adan import BETAS, EPSILON, adan_schedule
from instantgi.gaussians import Gaussians
from instantgi.render.ops import PARAMETERS, rasterize_error, rasterize_error_backward

BITS, LEVELS = 6, 63  # of a Cholesky factor
STAGES, WORDS = 2, 8  # of a color
DECAY = 0.8  # of the codewords' moving means
KMEANS = 5  # iterations that the codewords start from
HEADER = struct.Struct("<III")  # height, width, Gaussians
SIDE_BITS = 32 * (6 + STAGES * WORDS * 3)  # scales, offsets and codewords


class QuantisedGaussianImage(GaussianImage):
    """The second stage: steps on the picture as it will be decoded, gradients passed straight on.

    The squared distance of each stage of a color to its codeword, mean over Gaussians and
    channels, is added to the mean squared error (commitment); codewords are moving means.
    """

    def start(self, image: Tensor, init: Gaussians | None, num_gaussians: int, seed: int) -> None:
        super().start(image, init, num_gaussians, seed)
        shape = self.geometry[2:]
        self.offsets = shape.min(1, keepdim=True).values  # [3, 1]
        self.scales = ((shape.max(1, keepdim=True).values - self.offsets) / LEVELS).clamp_min(1e-6)
        self.of_quantiser = [torch.zeros(4, 3, 1).to(shape) for _ in range(2)]
        self.codewords = _kmeans(self.colors, torch.Generator().manual_seed(seed))
        self.counts = [torch.ones(WORDS).to(shape) for _ in range(STAGES)]
        self.sums = [words.clone() for words in self.codewords]
        self.best, self.kept = math.inf, self.code()

    def step(self, progress: float) -> Tensor:
        rate = self.rate * 0.5 ** (self.iteration // self.halve_every)
        self.iteration += 1
        self.schedule.set(*adan_schedule(rate, BETAS, EPSILON, self.iteration))
        coded = self.code()
        geometry, colors = coded.values()
        size = (self.height, self.width)
        means, cholesky = torch.ops.instantgi.gaussianimage(geometry, *size, False)
        scene = (means, cholesky, colors)
        residual, squares = rasterize_error(*scene, self.target, *size, True, self.order)
        if float(squares) < self.best:
            self.best, self.kept = float(squares), coded
        scale = 2 / (colors.shape[1] * self.height * self.width)
        grads = rasterize_error_backward(residual, *scene, *size, scale, PARAMETERS, self.order)
        gradient = torch.ops.instantgi.gaussianimage_backward(geometry, grads[0], *size, False)
        self._update(gradient, grads[1], coded)
        return squares

    def _update(self, geometry: Tensor, colors: Tensor, coded: "Coded") -> None:
        """Straight through the roundings: positions and colors as they are, shapes by LSQ+."""
        of_shape, place = geometry[2:], (self.geometry[2:] - self.offsets) / self.scales
        inside = (place >= 0) & (place <= LEVELS)
        ends = torch.where(place < 0, 0.0, float(LEVELS))
        of_scale = (of_shape * torch.where(inside, place.round() - place, ends)).sum(1, True)
        of_offset = (of_shape * ~inside).sum(1, True)
        gradient = torch.cat([geometry[:2], of_shape * inside])
        left, commitment = self.colors, torch.zeros_like(colors)
        for stage, chosen in enumerate(coded.indices):
            nearest = self.codewords[stage][chosen]
            commitment += 2 / colors.numel() * (left - nearest)
            self._learn(stage, left, chosen)
            left = left - nearest
        updates = [
            (self.geometry, gradient, self.moments[0]),
            (self.colors, colors + commitment, self.moments[1]),
            (self.scales, of_scale, self.of_quantiser[0]),
            (self.offsets, of_offset, self.of_quantiser[1]),
        ]
        for parameter, slope, moments in updates:
            _step(parameter, slope, moments, self.schedule.now)
        self.scales.clamp_min_(1e-6)

    def _learn(self, stage: int, values: Tensor, chosen: Tensor) -> None:
        """A codeword is the moving mean of what chose it."""
        ones = torch.nn.functional.one_hot(chosen, WORDS).to(values)  # [N, 8]
        self.counts[stage] = self.counts[stage] * DECAY + ones.sum(0) * (1 - DECAY)
        self.sums[stage] = self.sums[stage] * DECAY + ones.T @ values * (1 - DECAY)
        total = self.counts[stage].sum()
        smoothed = (self.counts[stage] + 1e-5) / (total + WORDS * 1e-5) * total
        self.codewords[stage] = self.sums[stage] / smoothed[:, None]

    def code(self) -> "Coded":
        """The numbers that a file holds."""
        place = (self.geometry[2:] - self.offsets) / self.scales
        left, indices = self.colors, []
        for words in self.codewords:
            chosen = torch.cdist(left, words).argmin(1)
            indices.append(chosen)
            left = left - words[chosen]
        return Coded(
            self.geometry[:2].half(),
            place.clamp(0, LEVELS).round().to(torch.uint8),
            torch.stack(indices),
            self.scales.clone(),
            self.offsets.clone(),
            torch.stack(self.codewords),
        )

    def gaussians(self) -> Gaussians:
        return self.kept.gaussians(self.height, self.width)


@dataclasses.dataclass(frozen=True)
class Coded:
    """What a file of N Gaussians in three channels holds."""

    places: Float[Tensor, "2 N"]  # half floats, before tanh
    shapes: Tensor  # [3, N], 6 bits
    indices: Tensor  # [2, N], 3 bits
    scales: Float[Tensor, "3 1"]
    offsets: Float[Tensor, "3 1"]
    codewords: Float[Tensor, "2 8 3"]

    def values(self) -> tuple[Float[Tensor, "5 N"], Float[Tensor, "N 3"]]:
        """Raw geometry and colors."""
        shapes = self.shapes.float() * self.scales + self.offsets
        colors = sum(
            words[chosen] for words, chosen in zip(self.codewords, self.indices, strict=True)
        )
        assert isinstance(colors, Tensor)
        return torch.cat([self.places.float(), shapes]).contiguous(), colors.contiguous()

    def gaussians(self, height: int, width: int) -> Gaussians:
        geometry, colors = self.values()
        means, cholesky = torch.ops.instantgi.gaussianimage(geometry, height, width, False)
        return Gaussians(means, cholesky, colors)

    def pack(self, height: int, width: int) -> bytes:
        """56 bits of each Gaussian, the side information, and a header of 12 bytes."""
        side = torch.cat([self.scales.flatten(), self.offsets.flatten(), self.codewords.flatten()])
        parts = [HEADER.pack(height, width, self.places.shape[1])]
        parts.append(side.cpu().numpy().astype("<f4").tobytes())
        parts.append(self.places.cpu().numpy().astype("<f2").tobytes())
        for numbers, bits in ((self.shapes, BITS), (self.indices, 3)):
            flat = numbers.flatten().cpu().numpy().astype(np.int64)
            places = flat[:, None] >> np.arange(bits - 1, -1, -1) & 1
            parts.append(np.packbits(places.astype(np.uint8)).tobytes())
        return b"".join(parts)

    @classmethod
    def unpack(cls, data: bytes) -> tuple["Coded", int, int]:
        """What `pack` wrote, the height and the width.

        Raises:
            FormatError: if the length is wrong.
        """
        height, width, num = HEADER.unpack_from(data) if len(data) >= HEADER.size else (0, 0, 0)
        lengths = [SIDE_BITS // 8, 4 * num, -(-3 * BITS * num // 8), -(-6 * num // 8)]
        if not (height and width) or len(data) != HEADER.size + sum(lengths):
            raise FormatError("is damaged: not as long as its Gaussians need")
        ends = np.cumsum([HEADER.size, *lengths])
        side, places, shapes, indices = (data[a:b] for a, b in zip(ends, ends[1:], strict=False))
        numbers = torch.from_numpy(np.frombuffer(side, "<f4").astype(np.float32))

        def integers(packed: bytes, bits: int, rows: int) -> Tensor:
            flags = np.unpackbits(np.frombuffer(packed, np.uint8), count=rows * num * bits)
            found = flags.reshape(-1, bits) @ (1 << np.arange(bits - 1, -1, -1))
            return torch.from_numpy(found.astype(np.int64).reshape(rows, num))

        halves = np.frombuffer(places, "<f2").astype(np.float16).reshape(2, num)
        coded = cls(
            torch.from_numpy(halves),
            integers(shapes, BITS, 3),
            integers(indices, 3, STAGES),
            numbers[:3, None],
            numbers[3:6, None],
            numbers[6:].reshape(STAGES, WORDS, 3),
        )
        return coded, height, width

    def counted_bits(self) -> tuple[int, int]:
        """Bits as published: of fixed lengths, and with entropy coding as its authors count it.

        Neither has a header. The second codes all Cholesky numbers by one histogram and all
        indices by another, in whole words; a histogram costs 8 bits a symbol and 64 a count.
        """
        num = self.places.shape[1]
        entropy = 32 * num + SIDE_BITS
        for numbers in (self.shapes, self.indices):
            counts = numbers.flatten().long().bincount()
            counts = counts[counts > 0].double()
            bits = float((counts * (counts.sum() / counts).log2()).sum())
            entropy += 32 * math.ceil(bits / 32) + 72 * len(counts)
        return 56 * num + SIDE_BITS, entropy


def _step(parameter: Tensor, gradient: Tensor, moments: Tensor, schedule: Tensor) -> None:
    torch.ops.instantgi.adan_(parameter, gradient.contiguous(), moments, schedule)


def _kmeans(colors: Tensor, random: torch.Generator) -> list[Tensor]:
    """Codewords of each stage: means of clusters of what the stage before left."""
    left, stages = colors, []
    for _ in range(STAGES):
        picked = torch.randint(len(left), (WORDS,), generator=random).to(left.device)
        words = left[picked].clone()
        for _ in range(KMEANS):
            chosen = torch.cdist(left, words).argmin(1)
            for k in range(WORDS):
                if (chosen == k).any():
                    words[k] = left[chosen == k].mean(0)
        stages.append(words)
        left = left - words[torch.cdist(left, words).argmin(1)]
    return stages


def fit_coded(
    image: Float[Tensor, "3 H W"], num_gaussians: int, iterations: int, seed: int = 0
) -> Coded:
    """The published pipeline: so many steps of the fit, and as many of the quantised one."""
    if len(image) != 3:
        raise ValueError(f"GaussianImage's codec takes RGB, got {len(image)} channels")
    first = GaussianImage()
    fit_image(image, method=first, num_gaussians=num_gaussians, iterations=iterations, seed=seed)
    second = _Continued(first)
    fit_image(image, method=second, num_gaussians=num_gaussians, iterations=iterations, seed=seed)
    return second.kept


class _Continued(QuantisedGaussianImage):
    """From the parameters of a fit as they are: through Gaussians they would come back rounded."""

    def __init__(self, before: GaussianImage):
        super().__init__()
        self.before = before

    def _random(self, num: int, channels: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.before.geometry[:2].T, self.before.geometry[2:].T, self.before.colors
