"""Image-GS (SIGGRAPH 2025): a normalised mixture that grows where the error is."""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.filters import gaussian_blur
from instantgi.gaussians import Gaussians
from instantgi.metrics import psnr_from_mse
from instantgi.render.mixture import EPSILON, TOP_K, check_mixture, rasterize_mixture
from instantgi.render.points import mixture_at
from instantgi.render.published import published_mixture
from instantgi.representations import Mixture, Representation, flat
from instantgi.similarity import mean_ssim

STAGES = 5  # half of the Gaussians, then an eighth of them four times
INTERVAL = 500  # steps between two stages, at most
SHARE = 0.1  # of a fit between two stages, at most
PATIENCE, CHECK_EVERY = 1000, 100  # steps
BETTER_PSNR, BETTER_SSIM = 0.1, 0.001
INITIAL_SCALE = 5.0  # px
EVENLY = 0.8  # share of the sampled pixels that is spread evenly, the paper's λ of optimisation
PARAMETERS = ("positions", "inverse_scales", "rotations", "colors")


@dataclasses.dataclass(frozen=True)
class Grids:
    """Bits of each number where all of a kind lie on an even grid between their extremes."""

    positions: int = 16
    inverse_scales: int = 16
    rotations: int = 16
    colors: int = 16

    def __post_init__(self) -> None:
        for name, bits in dataclasses.asdict(self).items():
            if not 4 <= bits <= 32:
                raise ValueError(f"{name} must have from 4 to 32 bits, got {bits}")

    def bytes_of(self, num: int, channels: int) -> int:
        """What so many Gaussians take, with the two ends of each grid."""
        bits = 2 * self.positions + 2 * self.inverse_scales + self.rotations
        return -(-num * (bits + channels * self.colors) // 8) + 4 * 2 * 4


class ImageGS:
    """Image-GS as its code has it, with its errors repaired; or `paper`, with them.

    Half of the Gaussians start at pixels drawn by the squared gradient of the picture (a share
    `uniform` of them evenly), 5 px round, with the picture's color; four times an eighth of them is
    added at pixels drawn by the square of the mean absolute error. Positions are shares of width
    and height, scales inverse, Σ = R diag(s₁², s₂²) Rᵀ. Adam on mean |C − I| + 0.1 (1 − SSIM),
    rates 5e-4, 2e-3, 2e-3 and 5e-3 for positions, inverse scales, rotations and colors, a tenth of
    that after 1,000 steps without 0.1 dB and 0.001 of SSIM more (the code stops after another
    1,000; here the loop does, by `patience`). A stage lasts 500 steps, or a tenth of the fit if
    that is less.

    `paper`: a pixel is sampled at its corner, tiles decide which Gaussians it sees, the gradients
    of scales and rotations are those of the code (the shear counts twice, and twice again), a new
    Gaussian has the error for its color, and growth clears Adam's moments. Otherwise: pixels are
    sampled at their centers, nothing depends on tiles, gradients are exact, a new Gaussian has the
    picture's color, Adam goes on, and means stay in the picture, which files need. What the text
    of the paper has and its code has not: `samples`, see there.

    Args:
        paper: see above.
        samples: pixels of a step, drawn by the gradient (a share of 0.8 evenly), on which the mean
            of |C − I| is taken instead of the whole picture; None for that. Rates then fall by the
            PSNR that the samples say, the mean of so many steps.
        grids: hold parameters on grids during the fit, with straight-through gradients.
        prefixes: share of the steps that fit the Gaussians of an earlier stage alone, so that
            they stay a good coarser picture.
        top_k, epsilon: of the mixture; by default those of the mixture that a fit goes on from,
            or 10 and 1e-4.
        uniform: share of the start that is spread evenly.
        dissimilarity: weight of 1 − SSIM.
    """

    def __init__(
        self,
        *,
        paper: bool = False,
        samples: int | None = None,
        grids: Grids | None = None,
        prefixes: float = 0.0,
        top_k: int | None = None,
        epsilon: float | None = None,
        uniform: float = 0.3,
        dissimilarity: float = 0.1,
        rates: tuple[float, float, float, float] = (5e-4, 2e-3, 2e-3, 5e-3),
    ):
        if paper and samples is not None:
            raise ValueError("samples are of the text, paper=True is of the code: choose one")
        if samples is not None and (not isinstance(samples, int) or samples < 1):
            raise ValueError(f"samples must be a whole number of at least 1, got {samples!r}")
        if not 0 <= uniform <= 1:
            raise ValueError(f"uniform must be from 0 to 1, got {uniform}")
        if not 0 <= prefixes < 1:
            raise ValueError(f"prefixes must be from 0 to below 1, got {prefixes}")
        check_mixture(TOP_K if top_k is None else top_k, EPSILON if epsilon is None else epsilon)
        self.paper, self.samples, self.grids, self.prefixes = paper, samples, grids, prefixes
        self.given, self.uniform = (top_k, epsilon), uniform
        self.dissimilarity, self.rates = dissimilarity, rates

    def start(
        self, image: Tensor, init: Representation | None, num_gaussians: int, seed: int
    ) -> None:
        self.image = image.detach().float()
        self.height, self.width = image.shape[1:]
        self.random = torch.Generator().manual_seed(seed)
        top_k, epsilon = (
            (init.top_k, init.epsilon) if isinstance(init, Mixture) else (TOP_K, EPSILON)
        )
        self.top_k = top_k if self.given[0] is None else self.given[0]
        self.epsilon = epsilon if self.given[1] is None else self.given[1]
        self.density = squared_gradient(self.image)
        if init is None:
            first = -(-num_gaussians // 2)
            parameters = self._born(self._first_places(first), self.image)
        else:
            gaussians = flat(init).detach().to(self.image)
            if self.paper:
                gaussians = gaussians.translated(-0.5, -0.5)
            if not isinstance(init, Mixture):  # colors of a sum are no averages
                gaussians = dataclasses.replace(gaussians, colors=self._colors_at(gaussians.means))
            parameters = self._inverse(gaussians)
        self.parameters = {
            name: value.requires_grad_() for name, value in zip(PARAMETERS, parameters, strict=True)
        }
        self.optimizer = torch.optim.Adam(
            [
                {"params": [value], "lr": rate}
                for value, rate in zip(self.parameters.values(), self.rates, strict=True)
            ]
        )
        self.stages = list(init.stages) if isinstance(init, Mixture) else [len(parameters[0])]
        self.waiting = _growth(num_gaussians - self.stages[-1], STAGES - len(self.stages))
        self.iteration, self.is_slow, self.grown_at = 0, False, 0
        self.grown = 0  # stages of this fit
        self.best, self.improved_at, self.looked_at = (-math.inf, -math.inf), 0, 0
        self.recent: list[Tensor] = []  # squared errors of the last steps on samples
        share = self.density.sqrt().double().flatten()
        self.sampling = (1 - EVENLY) * share / share.sum().clamp_min(1e-12) + EVENLY / share.numel()
        self.sampling /= self.sampling.sum()

    def next_stage(self) -> bool:
        """Grow now, if there is something to come."""
        if self.waiting:
            self._grow(self.waiting.pop(0))
            return True
        return False

    def step(self, progress: float) -> Tensor:
        due = self.grown + 1
        if self.iteration >= INTERVAL * due or progress >= SHARE * due:
            self.next_stage()
        self.iteration += 1
        count = self._count()
        if self.samples is None:
            loss, squares = self._whole_loss(count)
        else:
            loss, squares = self._sampled_loss(count, self.samples)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if not self.paper:
            self.parameters["positions"].detach().clamp_(0, 1)
        return squares

    def gaussians(self) -> Mixture:
        stages = tuple(self.stages)
        with torch.no_grad():
            made = self._gaussians()
            if self.paper:  # it samples at corners
                made = made.translated(0.5, 0.5)
            return Mixture(made, self.top_k, self.epsilon, stages)

    # --- the loss ------------------------------------------------------------------------------

    def _count(self) -> int:
        """Of the Gaussians that take part in this step."""
        if len(self.stages) > 1 and torch.rand((), generator=self.random) < self.prefixes:
            chosen = torch.randint(len(self.stages) - 1, (), generator=self.random)
            return self.stages[int(chosen)]
        return self.stages[-1]

    def _whole_loss(self, count: int) -> tuple[Tensor, Tensor]:
        picture = self._draw(count)
        difference = picture - self.image
        similarity = mean_ssim(picture, self.image)
        loss = difference.abs().mean() + self.dissimilarity * (1 - similarity)
        with torch.no_grad():
            squares = difference.square().sum(dtype=torch.float64)
            if self._looks(count):
                self._look(float(squares), float(similarity))
        return loss, squares

    def _sampled_loss(self, count: int, samples: int) -> tuple[Tensor, Tensor]:
        """On pixels drawn by the gradient; the squares are an estimate of the whole picture's."""
        places = torch.rand(samples, generator=self.random, dtype=torch.float64)
        ends = self.sampling.cumsum(0)
        chosen = torch.searchsorted(ends, places.to(ends)).clamp_max(len(ends) - 1)
        points = torch.stack([chosen % self.width, chosen // self.width], 1).float() + 0.5
        scene = self._gaussians()[:count]
        values = mixture_at(scene, points, top_k=self.top_k, epsilon=self.epsilon)
        difference = values - self.image.flatten(1)[:, chosen].T
        share = self.sampling[chosen]
        squares = (difference.detach().square().sum(1).double() / share).mean()
        self.recent = [*self.recent, squares][-CHECK_EVERY:]
        if self._looks(count):  # a mean of many steps: each sees other pixels
            self._look(float(torch.stack(self.recent).mean()), math.inf)
        return difference.abs().mean(), squares

    def _looks(self, count: int) -> bool:
        """Whether this step, which draws so many Gaussians, tells how good the picture is."""
        is_whole = not self.waiting and count == self.stages[-1]
        return is_whole and self.iteration - self.looked_at >= CHECK_EVERY

    def _look(self, squares: float, similarity: float) -> None:
        """A tenth of the rates, once, after a while without a better picture."""
        self.looked_at = self.iteration
        decibels = psnr_from_mse(squares / self.image.numel())
        is_better = decibels > self.best[0] + BETTER_PSNR and (
            similarity == math.inf or similarity > self.best[1] + BETTER_SSIM
        )
        if is_better:
            self.best, self.improved_at = (decibels, similarity), self.iteration
        elif self.iteration - max(self.improved_at, self.grown_at) >= PATIENCE and not self.is_slow:
            self.is_slow, self.improved_at = True, self.iteration
            for group in self.optimizer.param_groups:
                group["lr"] /= 10

    # --- parameters ----------------------------------------------------------------------------

    def _held(self, name: str) -> Tensor:
        """A parameter, on its grid if it has one."""
        value = self.parameters[name]
        return value if self.grids is None else on_grid(value, getattr(self.grids, name))

    def _gaussians(self) -> Gaussians:
        size = self.image.new_tensor([self.width, self.height])
        scales = 1 / self._held("inverse_scales").abs().clamp(1e-4, 1e4)
        return Gaussians.from_scales_rotations(
            self._held("positions") * size, scales, -self._held("rotations"), self._held("colors")
        )

    def _draw(self, count: int) -> Tensor:
        if not self.paper:
            options = {"top_k": self.top_k, "epsilon": self.epsilon}
            scene = self._gaussians()[:count]
            return rasterize_mixture(scene, self.height, self.width, **options)
        size = self.image.new_tensor([self.width, self.height])
        means = self._held("positions") * size + 0.5  # sampled at corners
        scales, rotations = 1 / self._held("inverse_scales"), self._held("rotations")
        covariances = PublishedShape.apply(scales, rotations)
        return published_mixture(
            means[:count],
            covariances[:count],
            self._held("colors")[:count],
            self.height,
            self.width,
            self.top_k,
            self.epsilon,
        )

    def _colors_at(self, means: Tensor) -> Tensor:
        """Of the picture, where these are."""
        columns, rows = means.floor().long().unbind(1)
        columns, rows = columns.clamp(0, self.width - 1), rows.clamp(0, self.height - 1)
        return self.image[:, rows, columns].T.contiguous()

    def _inverse(self, init: Gaussians) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scales, rotations = init.scales_rotations
        size = init.means.new_tensor([self.width, self.height])
        return init.means / size, 1 / scales, -rotations, init.colors.clone()

    def _born(self, places: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        """New Gaussians at pixels, with the colors of an image there."""
        rows, cols = places // self.width, places % self.width
        size = self.image.new_tensor([self.width, self.height])
        positions = (torch.stack([cols, rows], 1).to(self.image) + 0.5) / size
        return (
            positions,
            positions.new_full((len(places), 2), 1 / INITIAL_SCALE),
            positions.new_zeros(len(places)),
            image.flatten(1)[:, places].T.contiguous(),
        )

    # --- growth --------------------------------------------------------------------------------

    def _first_places(self, num: int) -> Tensor:
        evenly = round(self.uniform * num)
        flat_density = torch.ones_like(self.density)
        chosen = [
            draw_places(flat_density, evenly, self.random),
            draw_places(self.density, num - evenly, self.random),
        ]
        return torch.cat(chosen)

    @torch.no_grad()
    def _grow(self, num: int) -> None:
        picture = self._draw(self.stages[-1]).clamp(0, 1)
        target = _blurred(self.image)
        error = (target - picture).abs().mean(0).square()
        places = draw_places(error, num, self.random)
        born = self._born(places, target - picture if self.paper else self.image)
        for name, value, group in zip(PARAMETERS, born, self.optimizer.param_groups, strict=True):
            old = self.parameters[name]
            new = torch.cat([old.detach(), value]).requires_grad_()
            state = self.optimizer.state.pop(old, {})
            if not self.paper and state:
                self.optimizer.state[new] = {
                    "step": state["step"],
                    **{
                        moment: torch.cat([state[moment], torch.zeros_like(value)])
                        for moment in ("exp_avg", "exp_avg_sq")
                    },
                }
            self.parameters[name], group["params"] = new, [new]
        self.stages.append(self.stages[-1] + num)
        self.grown_at, self.grown = self.iteration, self.grown + 1


class PublishedShape(torch.autograd.Function):
    """Scales [N, 2] and rotations [N] to covariances, with the gradient of the published code."""

    @staticmethod
    def forward(ctx, scales, rotations):
        ctx.save_for_backward(scales, rotations)
        cos, sin = rotations.cos(), rotations.sin()
        first, second = scales.square().unbind(1)
        xx, yy = cos**2 * first + sin**2 * second, sin**2 * first + cos**2 * second
        return torch.stack([xx, sin * cos * (second - first), yy], 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        scales, rotations = ctx.saved_tensors
        cos, sin = rotations.cos(), rotations.sin()
        first, second = scales.square().unbind(1)
        xx, yy = cos**2 * first + sin**2 * second, sin**2 * first + cos**2 * second
        xy, area = sin * cos * (second - first), (first * second).clamp_min(1e-12)
        # The conic's gradient is −Σ M Σ. Its shear counts twice …
        m_xx, m_xy, m_yy = grad[:, 0], grad[:, 1] / 2, grad[:, 2]
        shear = -(xx * (m_xx * xy + m_xy * yy) + xy * (m_xy * xy + m_yy * yy))
        # … so that −Σ⁻¹ [[0, shear], [shear, 0]] Σ⁻¹ is added
        a, b, c = yy / area, -xy / area, xx / area
        w_xx, w_yy = m_xx - 2 * a * b * shear, m_yy - 2 * b * c * shear
        w_xy = m_xy - (a * c + b * b) * shear
        # … and once more on the way to scales and rotations.
        of_xx, of_xy, of_yy = w_xx, 4 * w_xy, w_yy
        s1, s2 = scales.unbind(1)
        of_s1 = 2 * s1 * (cos**2 * of_xx + sin**2 * of_yy) - 2 * s1 * sin * cos * of_xy
        of_s2 = 2 * s2 * (sin**2 * of_xx + cos**2 * of_yy) + 2 * s2 * sin * cos * of_xy
        difference = s2**2 - s1**2
        of_rotation = 2 * sin * cos * difference * (of_xx - of_yy)
        of_rotation = of_rotation + (cos**2 - sin**2) * difference * of_xy
        return torch.stack([of_s1, of_s2], 1), of_rotation


def on_grid(value: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits even steps between the smallest and the largest; straight through."""
    low, high = value.detach().aminmax()
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
    rounded = ((value.detach() - low) / step).round() * step + low
    return value + (rounded - value).detach()


def _growth(missing: int, stages: int) -> list[int]:
    """How many Gaussians each of so many later stages adds; one has them all if none is left."""
    stages = max(1, stages)
    each = -(-max(0, missing) // stages)
    counts = [min(each, missing - each * i) for i in range(stages)]
    return [count for count in counts if count > 0]


def squared_gradient(image: Float[Tensor, "C H W"]) -> Float[Tensor, "H W"]:
    """Of Sobel's filter over all channels, at most 1; edges are mirrored."""
    padded = torch.nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    along = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    x, y = across[:, :, 2:] - across[:, :, :-2], along[:, 2:] - along[:, :-2]
    squares = (x.square() + y.square()).sum(0)
    return squares / squares.max().clamp_min(1e-12)


def draw_places(density: Float[Tensor, "H W"], num: int, random: torch.Generator) -> Tensor:
    """Indices of `num` pixels, none twice while there are others, in proportion to the density.

    By exponential keys (Efraimidis and Spirakis, 2006): the largest of ln p − ln(−ln u). Where the
    density is 0 they are chosen last, evenly.
    """
    rate = density.flatten().double().clamp_min(1e-30).log()
    noise = torch.rand(len(rate), generator=random, dtype=torch.float64).to(rate.device)
    keys = rate - (-noise.clamp_min(1e-300).log()).clamp_min(1e-300).log()
    whole, rest = divmod(num, len(keys))
    order = keys.topk(rest).indices
    every = torch.arange(len(keys), device=keys.device)
    return torch.cat([every.repeat(whole), order])


def _blurred(image: Float[Tensor, "C H W"]) -> Float[Tensor, "C H W"]:
    """The target that growth looks at: without the finest of large pictures."""
    taps = math.isqrt(image.shape[1] * image.shape[2]) // 400
    if taps < 1:
        return image
    taps = max(3, taps + (taps + 1) % 2)
    return gaussian_blur(image, 0.3 * ((taps - 1) / 2 - 1) + 0.8)
