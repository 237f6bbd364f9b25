"""`Gaussians`: the record where all roads meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MOST_GAUSSIANS = 2**26  # of a file, and of a fit
FIELDS = ("means", "cholesky", "colors")


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussians:
    """N anisotropic 2D Gaussians in pixels: n adds colors[n] · exp(−½ dᵀ Σ⁻¹ d), d = p − means[n].

    The shape is kept as the Cholesky factor of Σ: a thin ellipse loses no digits in it, as it
    would in Σ.

    Attributes:
        means: (x, y) in pixels; the center of pixel (row i, column j) is (j + 0.5, i + 0.5).
        cholesky: (l11, l21, l22) in pixels, Σ = L Lᵀ with L lower triangular.
        colors: C channels, not clamped, may be negative; the opacity is part of them.

    Raises:
        ValueError: if the shapes, kinds or devices of the fields do not fit together.
    """

    means: Float[Tensor, "N 2"]
    cholesky: Float[Tensor, "N 3"]
    colors: Float[Tensor, "N C"]

    def __post_init__(self) -> None:
        for name, columns in (("means", 2), ("cholesky", 3), ("colors", None)):
            field = getattr(self, name)
            if not isinstance(field, Tensor) or not field.is_floating_point():
                raise ValueError(f"{name} must be a tensor of floats, got {kind_of(field)}")
            if (
                field.ndim != 2
                or field.shape[1] != (columns or field.shape[1])
                or field.shape[1] == 0
            ):
                raise ValueError(f"{name} must be [N, {columns or 'C'}], got {list(field.shape)}")
            if len(field) != len(self.means):
                raise ValueError(
                    f"{name} must be [N, {columns or 'C'}] with N = {len(self.means)} as in means, "
                    f"got {list(field.shape)}"
                )
            if (field.dtype, field.device) != (self.means.dtype, self.means.device):
                raise ValueError(
                    f"{name} is {field.dtype} on {field.device}, but means is {self.means.dtype} "
                    f"on {self.means.device}; bring them together with .to()"
                )

    @classmethod
    def from_covariances(
        cls,
        means: Float[Tensor, "N 2"],
        covariances: Float[Tensor, "N 3"],
        colors: Float[Tensor, "N C"],
    ) -> Gaussians:
        """Gaussians with these covariances (xx, xy, yy), px²; differentiable.

        Raises:
            ValueError: if a covariance is not positive definite.
        """
        bad = ~((covariances[:, 0] > 0) & (determinants(covariances) > 0))
        if bad.any():
            n = int(bad.nonzero()[0, 0])
            raise ValueError(
                "covariances must be positive definite (xx > 0, xx·yy > xy²), "
                f"got {covariances[n].tolist()} at {n}"
            )
        return cls(means, cholesky_from_covariances(covariances), colors)

    @classmethod
    def from_scales_rotations(
        cls,
        means: Float[Tensor, "N 2"],
        scales: Float[Tensor, "N 2"],
        rotations: Float[Tensor, " N"],
        colors: Float[Tensor, "N C"],
    ) -> Gaussians:
        """Gaussians with these standard deviations (px, > 0) along the axes turned by `rotations`.

        Rotations are radians from +x towards +y: Σ = R diag(s1², s2²) Rᵀ, the first scale lies
        along (cos θ, sin θ). Differentiable.

        Raises:
            ValueError: if a scale is not positive.
        """
        if not (scales > 0).all():
            n = int((~(scales > 0)).nonzero()[0, 0])
            raise ValueError(f"scales must be > 0 pixels, got {scales[n].tolist()} at {n}")
        return cls(means, cholesky_from_scales_rotations(scales, rotations), colors)

    def __len__(self) -> int:
        return len(self.means)

    @property
    def covariances(self) -> Float[Tensor, "N 3"]:
        """(xx, xy, yy) of Σ, px²."""
        l11, l21, l22 = self.cholesky.unbind(-1)
        return torch.stack([l11 * l11, l11 * l21, l21 * l21 + l22 * l22], -1)

    @property
    def conics(self) -> Float[Tensor, "N 3"]:
        """(xx, xy, yy) of Σ⁻¹, px⁻²."""
        l11, l21, l22 = self.cholesky.unbind(-1)
        shear = l21 / (l11 * l22)
        return torch.stack([1 / l11**2 + shear**2, -shear / l22, 1 / l22**2], -1)

    @property
    def scales_rotations(self) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
        """Standard deviations in pixels, the larger first; its direction, (−π/2, π/2] radians."""
        xx, xy, yy = self.covariances.double().unbind(-1)
        large = ((xx + yy) + torch.hypot(xx - yy, 2 * xy)) / 2
        area = (self.cholesky[:, 0].double() * self.cholesky[:, 2].double()).abs()
        major = large.sqrt()
        rotations = torch.atan2(2 * xy, xx - yy) / 2
        # the product of the scales is l11 · l22 exactly: no cancellation for thin ellipses
        scales = torch.stack([major, area / major.clamp_min(torch.finfo(torch.float64).tiny)], -1)
        return scales.to(self.means.dtype), rotations.to(self.means.dtype)

    def scaled(self, factor_x: float, factor_y: float) -> Gaussians:
        """The same picture at `factor` times its width and height."""
        for factor in (factor_x, factor_y):
            if not 0 < factor < float("inf"):
                raise ValueError(f"a picture is scaled by a positive number, got {factor}")
        l11, l21, l22 = self.cholesky.unbind(-1)
        return Gaussians(
            self.means * self.means.new_tensor([factor_x, factor_y]),
            torch.stack([l11 * factor_x, l21 * factor_y, l22 * factor_y], -1),
            self.colors,
        )

    def translated(self, x: float, y: float) -> Gaussians:
        """All means moved by (x, y) pixels."""
        return Gaussians(self.means + self.means.new_tensor([x, y]), self.cholesky, self.colors)

    def cropped(self, x: float, y: float, height: int, width: int) -> Gaussians:
        """The Gaussians that reach the window, with (x, y) as its new origin.

        Drawn at height x width they give exactly that part of the picture.
        """
        check_size(height, width)
        moved = self.translated(-x, -y)
        reach = RADIUS * torch.stack(
            [moved.cholesky[:, 0].abs(), moved.cholesky[:, 1:].norm(dim=-1)], -1
        )
        size = self.means.new_tensor([width, height])
        return moved[((moved.means + reach > 0) & (moved.means - reach < size)).all(-1)]

    def __getitem__(self, which: Tensor | slice) -> Gaussians:
        return self.map(lambda field: field[which])

    def map(self, function: Callable[[Tensor], Tensor]) -> Gaussians:
        """The same function applied to every field."""
        return Gaussians(*(function(getattr(self, name)) for name in FIELDS))

    def to(self, *args: Any, **kwargs: Any) -> Gaussians:
        """On another device or in another dtype, as `Tensor.to`."""
        return self.map(lambda field: field.to(*args, **kwargs))

    def detach(self) -> Gaussians:
        return self.map(Tensor.detach)


RADIUS = 3.3290429691304455  # √(2 ln 255): standard deviations at which a weight falls to 1/255


def kind_of(value: object) -> str:
    """What came in place of a tensor of another kind, for errors."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {value.dtype}"
    return type(value).__name__


def check_size(height: int, width: int) -> None:
    if isinstance(height, float) or isinstance(width, float):
        raise ValueError(f"height and width must be whole numbers, got {height} and {width}")
    if height < 1 or width < 1:
        raise ValueError(f"a picture has at least 1x1 pixels, got height {height}, width {width}")


def determinants(covariances: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
    return covariances[:, 0] * covariances[:, 2] - covariances[:, 1] ** 2


def cholesky_from_covariances(covariances: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """(l11, l21, l22) with L Lᵀ = Σ, for positive definite Σ = (xx, xy, yy)."""
    xx, xy, yy = covariances.unbind(-1)
    l11 = xx.sqrt()
    l21 = xy / l11
    return torch.stack([l11, l21, (yy - l21 * l21).sqrt()], -1)


def cholesky_from_scales_rotations(
    scales: Float[Tensor, "N 2"], rotations: Float[Tensor, " N"]
) -> Float[Tensor, "N 3"]:
    """(l11, l21, l22) with L Lᵀ = R diag(s1², s2²) Rᵀ; l22 = s1 s2 / l11 needs no subtraction."""
    s1, s2 = scales.unbind(-1)
    cos, sin = rotations.cos(), rotations.sin()
    l11 = torch.hypot(s1 * cos, s2 * sin)
    return torch.stack([l11, (s1 - s2) * (s1 + s2) * sin * cos / l11, s1 * s2 / l11], -1)
