"""LIG, Large Images are Gaussians (AAAI 2025): covariances as they are, and levels of residuals."""

import torch
from torch import Tensor

from instantgi.fit.replay import Replay
from instantgi.gaussians import Gaussians
from instantgi.render.draw import interpolate, up_sample
from instantgi.render.ops import (
    PARAMETERS,
    order_by_place,
    rasterize_error,
    rasterize_error_backward,
    to_blocks,
)
from instantgi.render.published import published_sum
from instantgi.representations import Level, Levels, Representation

RATE = 0.018  # of Adam, for pixels, squared pixels and colors alike
FIRST_SHARE = 0.5  # of what a level's pixels would give it
THINNEST = 0.1  # px², smallest variance along any axis of a valid Gaussian


class LIG:
    """Gaussians whose symmetric covariances Adam moves directly, level by level.

    Level s of S has the picture at 2^(s + 1 − S) of its size, its target the picture averaged over
    so many pixels, less what the levels before give, which is drawn, clamped, and interpolated
    bilinearly; from the second level on that residual is normalised by its extremes, which are
    kept. It gets N 4^(s + 1 − S) / 2 Gaussians, the last one the rest: 1/8 and 7/8 of two levels,
    as the code and the counts of the paper have it (its text says 1/9). All start evenly, with
    Σxx, Σxy, Σyy in [0, 1] px² and black; each level has the same share of the steps, of Adam
    (β 0.9 and 0.999, rate 0.018) on the mean squared error of the sum clamped to [0, 1].

    `paper`: Σ may be indefinite, as half of them are at the start; they are drawn as by the
    published kernels (`published_sum`), which is slow, on the CPU only, and no file can hold. Here
    otherwise: after each step Σ is brought back to at least 0.1 px² along both of its axes, and is
    drawn exactly.

    Args:
        levels: at least 1; fewer where a level would have no pixel or Gaussian.
        paper: see above.
        first_share: of what its pixels would give a level before the last one; 1/2, or 4/9 for the
            ninth that the text says.
    """

    def __init__(
        self,
        levels: int = 2,
        *,
        paper: bool = False,
        rate: float = RATE,
        first_share: float = FIRST_SHARE,
    ):
        if type(levels) is not int or not 1 <= levels <= 8:
            raise ValueError(f"levels must be a whole number from 1 to 8, got {levels!r}")
        if not 0 < first_share <= 1:
            raise ValueError(f"first_share must be above 0 and at most 1, got {first_share}")
        self.num_levels, self.paper, self.rate = levels, paper, rate
        self.first_share = first_share

    def start(
        self, image: Tensor, init: Representation | None, num_gaussians: int, seed: int
    ) -> None:
        self.image = image.detach().float()
        self.random = torch.Generator().manual_seed(seed)
        if init is not None:
            self._continue(init, num_gaussians)
            return
        levels = self._possible_levels(num_gaussians)
        self.counts = split_count(num_gaussians, levels, self.first_share)
        self.done: list[Level] = []
        self._begin_level(None)

    def step(self, progress: float) -> Tensor:
        if progress * len(self.counts) >= len(self.done) + 1:
            self.next_stage()
        squares = self.replay(self._step_published if self.paper else self._step_valid)
        return self.lost + squares * self.scale

    def next_stage(self) -> bool:
        """Go on to the next level, if there is one."""
        if len(self.done) + 1 == len(self.counts):
            return False
        self.done.append(self._level())
        self._begin_level(None)
        return True

    def gaussians(self) -> Levels:
        """All levels; those that have not begun are empty, and add nothing."""
        begun, none = (*self.done, self._level()), self.image.new_zeros(0)
        empty = Gaussians(*(none.view(0, k) for k in (2, 3, len(self.image))))
        sizes = [self._size(index) for index in range(len(begun), len(self.counts))]
        rest = [Level(empty, *size, low=0.0, high=0.0) for size in sizes]
        return Levels((*begun, *rest))

    def _size(self, index: int) -> tuple[int, int]:
        """Height and width of a level."""
        shift = len(self.counts) - 1 - index
        return self.image.shape[1] >> shift, self.image.shape[2] >> shift

    # --- levels --------------------------------------------------------------------------------

    def _possible_levels(self, num_gaussians: int) -> int:
        height, width = self.image.shape[1:]
        levels = self.num_levels
        while levels > 1 and (
            min(height, width) >> (levels - 1) < 1
            or min(split_count(num_gaussians, levels, self.first_share)) < 1
        ):
            levels -= 1
        return levels

    def _begin_level(self, given: Level | None) -> None:
        """The target, and where the level starts."""
        index, last = len(self.done), len(self.counts) - 1
        height, width = self._size(index)
        target = area_average(self.image, height, width)
        self.low, self.high = 0.0, 1.0
        if self.done:
            target -= up_sample(tuple(self.done), (height, width), height, width)
            low, high = target.aminmax()
            self.low, self.high = float(low), max(float(high), float(low) + 1e-6)
        if given is not None:  # its colors are in these units
            self.low, self.high = given.low, given.high
        if (self.low, self.high) != (0.0, 1.0):
            target.sub_(self.low).div_(self.high - self.low)
        self.height, self.width = height, width
        # what an error here is worth in the picture, and what no Gaussian of this level can give
        factor = self.image[0].numel() / (height * width)
        self.scale = factor * (self.high - self.low) ** 2
        self.lost = self.image.new_zeros((), dtype=torch.float64)
        if index < last:
            self.lost = lost_by(self.image, height, width)
        self.target = target if self.paper else to_blocks(target)
        num = self.counts[index]
        if given is None:
            size = torch.tensor([width, height])
            means = torch.rand(num, 2, generator=self.random) * size
            covariances = torch.rand(num, 3, generator=self.random)
            colors = torch.zeros(num, len(self.image))
        else:
            means, colors = given.gaussians.means, given.gaussians.colors
            covariances = given.gaussians.cholesky
            if not given.is_published:
                covariances = given.gaussians.covariances
        parameters = (means, covariances, colors)
        self.means, self.covariances, self.colors = (
            each.to(self.image.device, torch.float32).clone() for each in parameters
        )
        if not self.paper:
            make_valid_(self.covariances)
        self.replay = Replay(self.image.device)
        self.optimizer = torch.optim.Adam(
            [self.means, self.covariances, self.colors],
            lr=self.rate,
            fused=True,
            capturable=self.replay.is_cuda,
        )
        self.order = order_by_place(self.means, height, width)

    def _level(self) -> Level:
        shapes = self.covariances.clone() if self.paper else cholesky_of(self.covariances)
        made = Gaussians(self.means.clone(), shapes, self.colors.clone())
        low, high = self.low, self.high
        return Level(made, self.height, self.width, low, high, self.paper)

    def _continue(self, init: Representation, num_gaussians: int) -> None:
        """From levels: the last that has begun goes on. From Gaussians: they are one level."""
        init = init.detach().to(self.image)
        height, width = self.image.shape[1:]
        if isinstance(init, Gaussians):
            init = Levels((Level(init, height, width),))
        if not isinstance(init, Levels):
            raise ValueError("init: lig starts from Gaussians or levels, not from a mixture")
        last = init.levels[-1]
        if (last.height, last.width) != (height, width):
            raise ValueError(
                f"init is of {last.width}x{last.height} pixels, the image of {width}x{height}"
            )
        if self.paper and not last.is_published:
            raise ValueError("the paper's variant starts from what it made itself")
        begun = [level for level in init.levels if len(level.gaussians)]
        if not begun:
            raise ValueError("init has no Gaussians")
        levels = len(init.levels)
        self.counts = [len(level.gaussians) for level in init.levels]
        if len(begun) < levels:
            num = round(self.counts[0] / self.first_share * 4 ** (levels - 1))
            num = num_gaussians if num_gaussians > len(init) else num
            self.counts[len(begun) :] = split_count(num, levels, self.first_share)[len(begun) :]
        self.done = begun[:-1]
        self._begin_level(begun[-1])

    # --- steps ---------------------------------------------------------------------------------

    def _step_valid(self) -> Tensor:
        size = (self.height, self.width)
        cholesky = cholesky_of(self.covariances)
        scene = (self.means, cholesky, self.colors)
        residual, squares = rasterize_error(*scene, self.target, *size, True, self.order)
        scale = 2 / (len(self.image) * self.height * self.width)
        geometry, colors = rasterize_error_backward(
            residual, *scene, *size, scale, PARAMETERS, self.order
        )
        self.means.grad, self.colors.grad = geometry[:, :2].contiguous(), colors
        self.covariances.grad = covariance_gradient(cholesky, geometry[:, 2:])
        self.optimizer.step()
        make_valid_(self.covariances)
        return squares

    def _step_published(self) -> Tensor:
        parameters = (self.means, self.covariances, self.colors)
        for parameter in parameters:
            parameter.requires_grad_()
        picture = published_sum(*parameters, self.height, self.width)
        drawn = picture.detach()
        difference = drawn.clamp(0, 1) - self.target
        # all are black at first: the clamp has to pass a gradient where it is reached exactly
        inside = (drawn >= 0) & (drawn <= 1)
        self.optimizer.zero_grad()
        picture.backward(torch.where(inside, difference, 0) * (2 / difference.numel()))
        self.optimizer.step()
        for parameter in parameters:
            parameter.requires_grad_(False)
        return difference.square().sum(dtype=torch.float64)


def split_count(num_gaussians: int, levels: int, first_share: float = FIRST_SHARE) -> list[int]:
    """How many Gaussians each level gets, from coarse to fine."""
    counts = [
        int(num_gaussians * first_share * 0.25 ** (levels - 1 - index))
        for index in range(levels - 1)
    ]
    return [*counts, num_gaussians - sum(counts)]


def area_average(image: Tensor, height: int, width: int) -> Tensor:
    """The picture at another size, each pixel the mean over its area."""
    if image.shape[1:] == (height, width):
        return image.clone()
    return torch.nn.functional.interpolate(image[None], (height, width), mode="area")[0]


def lost_by(image: Tensor, height: int, width: int) -> Tensor:
    """Sum of squared errors of the picture averaged over so many pixels, enlarged again."""
    average, whole = area_average(image, height, width), (image.shape[1], image.shape[2])
    lost = image.new_zeros((), dtype=torch.float64)
    for rows in _bands(image):
        size = rows.stop - rows.start, image.shape[2]
        kept = interpolate(average, whole, *size, (0.0, float(rows.start)))
        lost += (image[:, rows] - kept).square().sum(dtype=torch.float64)
    return lost


def cholesky_of(covariances: Tensor) -> Tensor:
    """(l11, l21, l22) of valid covariances (xx, xy, yy)."""
    xx, xy, yy = covariances.unbind(1)
    l11 = xx.sqrt()
    l21 = xy / l11
    return torch.stack([l11, l21, (yy - l21 * l21).clamp_min(1e-6).sqrt()], 1)


def covariance_gradient(cholesky: Tensor, gradient: Tensor) -> Tensor:
    """Of (xx, xy, yy), xy standing for both entries, from that of their Cholesky factors.

    l11 = √xx, l21 = xy / l11, l22 = √(yy − l21²).
    """
    l11, l21, l22 = cholesky.unbind(1)
    of_l11, of_l21, of_l22 = gradient.unbind(1)
    of_yy = of_l22 / (2 * l22)
    of_l21 = of_l21 - 2 * l21 * of_yy
    of_xy = of_l21 / l11
    of_xx = (of_l11 - of_xy * l21) / (2 * l11)
    return torch.stack([of_xx, of_xy, of_yy], 1)


def make_valid_(covariances: Tensor, thinnest: float = THINNEST) -> None:
    """The closest symmetric matrices whose eigenvalues are at least `thinnest`, in place."""
    xx, xy, yy = covariances.unbind(1)
    middle, half = (xx + yy) / 2, (xx - yy) / 2
    radius = torch.hypot(half, xy)
    small = middle - radius
    bad = small < thinnest
    if not bad.is_cuda and not bad.any():  # a GPU does not wait to know
        return
    large, low = (middle + radius).clamp_min(thinnest), small.clamp_min(thinnest)
    middle, grown = (large + low) / 2, (large - low) / 2
    share = torch.where(radius > 0, grown / radius.clamp_min(1e-30), 0)
    fixed = torch.stack([middle + half * share, xy * share, middle - half * share], 1)
    covariances.copy_(torch.where(bad[:, None], fixed, covariances))


def _bands(image: Tensor, rows: int = 256) -> list[slice]:
    return [slice(top, min(top + rows, image.shape[1])) for top in range(0, image.shape[1], rows)]
