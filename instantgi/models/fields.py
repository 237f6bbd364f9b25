"""From the triangles of a mesh and what a picture shows there to Gaussians: small MLPs."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from instantgi import native
from instantgi.gaussians import (
    Gaussians,
    cholesky_from_covariances,
    cholesky_from_scales_rotations,
)
from instantgi.models.look import MEMORY, in_two_rounds
from instantgi.points import Mesh
from instantgi.points.ellipses import fit_published_ellipses
from instantgi.render import rasterize


class Attributes(NamedTuple):
    """What the fields say of every triangle; differentiable."""

    means: Float[Tensor, "T 2"]
    cholesky: Float[Tensor, "T 3"]
    colors: Float[Tensor, "T C"]
    scales: Float[Tensor, "T 2"]  # standard deviations in pixels, for the penalty on small ones
    memory: Float[Tensor, "T M"] | None = None  # what `Look` is told


def sample(
    planes: Float[Tensor, "C H W"],
    places: Float[Tensor, "*N 2"],
    height: int,
    width: int,
    padding: str = "border",
) -> Float[Tensor, "*N C"]:
    """Bilinear samples, at places in pixels, of planes that cover a picture of height x width.

    The center of the picture's pixel (i, j) is at (j + 0.5, i + 0.5), whatever the planes' size.
    """
    scale = places.new_tensor([2 / width, 2 / height])
    grid = (places * scale - 1).reshape(1, 1, -1, 2)
    values = F.grid_sample(planes[None], grid, padding_mode=padding, align_corners=False)
    return values[0, :, 0].T.reshape(*places.shape[:-1], len(planes))


def sample_features(
    features: Float[Tensor, "F h w"],
    places: Float[Tensor, "*N 2"],
    stride: int,
    padding: str = "border",
) -> Float[Tensor, "*N F"]:
    """The same of features that stand for stride x stride pixels each."""
    height, width = features.shape[1:]
    return sample(features, places, stride * height, stride * width, padding)


class Described(NamedTuple):
    """What the local fields know of every triangle before any network; not differentiable."""

    known: Float[Tensor, "T K"]  # K = 3 side² + 19
    nine: Float[Tensor, "T 9 C"]  # colors around its center
    frames: Float[Tensor, "T 3"]  # (l11, l21, l22) of L, pixels


def describe_triangles(
    image: Float[Tensor, "C H W"],
    mesh: Mesh,
    grid: Float[Tensor, "G 2"],
    first: int = 0,
    num: int | None = None,
) -> Described:
    """What `num` triangles from `first` on see, see `LocalFields`; by a kernel.

    The same as `describe_triangles_reference`, for any number of channels.

    Args:
        grid: side² places in a triangle's frame, row by row; side 8, 12 or 16.
    """
    num = len(mesh.triangles) - first if num is None else num
    parts = (mesh.points, mesh.triangles, mesh.neighbors, mesh.centers, mesh.covariances)
    return Described(*torch.ops.instantgi.describe_triangles(image, *parts, grid, first, num))


def describe_triangles_reference(
    image: Tensor, mesh: Mesh, grid: Tensor, first: int = 0, num: int | None = None
) -> Described:
    """The definition of `describe_triangles`, in torch."""
    chosen = slice(first, len(mesh.triangles) if num is None else first + num)
    centers, triangles = mesh.centers[chosen], mesh.triangles[chosen]
    covariances = mesh.covariances[chosen]
    frames = cholesky_from_covariances(covariances + covariances.new_tensor([0.05, 0.0, 0.05]))
    l11, l21, l22 = frames[:, None].unbind(2)  # [T, 1]
    gx, gy = grid.unbind(1)
    places = torch.stack([l11 * gx, l21 * gx + l22 * gy], 2) + centers[:, None]
    height, width = image.shape[1:]
    values = sample(image, places, height, width)  # [T, G, C]
    rgb = three_channels(values.movedim(2, 0)).movedim(0, 2)
    mean = rgb.mean(1)
    contrast = rgb - mean[:, None]
    deviation = contrast.square().mean((1, 2)).sqrt()[:, None] + 0.01  # [T, 1]
    around = torch.cat([mesh.points[triangles], mesh.centers[mesh.neighbors[chosen]]], 1)
    around = around - centers[:, None]
    x = around[..., 0] / l11
    z = torch.stack([x, (around[..., 1] - l21 * x) / l22], 2).clamp(-8, 8)
    # from the corner of least angle on; a neighbor goes with the corner opposite it
    order = torch.atan2(z[:, :3, 1], z[:, :3, 0]).argmin(1, keepdim=True)
    order = (order + torch.arange(3, device=order.device)) % 3
    z = z.gather(1, torch.cat([order, order + 3], 1)[:, :, None].expand(-1, -1, 2))
    known = [
        (contrast / deviation[:, None]).mT.flatten(1),  # channel by channel
        z.flatten(1) / 3,
        (l11 * l22).log() / 2,
        (l11 / l22).log(),
        (l21 / l22).clamp(-4, 4),
        deviation.log() / 2 + 1,
        mean - 0.5,
    ]
    side = math.isqrt(len(grid))
    inner = values.unflatten(1, (side, side))[:, side // 4 : -(side // 4), side // 4 : -(side // 4)]
    return Described(torch.cat(known, 1), _three_by_three(inner), frames)


def _three_by_three(values: Float[Tensor, "T s s C"]) -> Float[Tensor, "T 9 C"]:
    """Corners, middles of the sides and center of each small picture, the last two blurred."""
    first, last = values[:, :1], values[:, -1:]
    middle = values[:, 1:-1].mean(1, keepdim=True)
    rows = torch.cat([first, middle, last], 1)  # [T, 3, s, C]
    middle = rows[:, :, 1:-1].mean(2, keepdim=True)
    return torch.cat([rows[:, :, :1], middle, rows[:, :, -1:]], 2).flatten(1, 2)


torch.library.define(
    "instantgi::describe_triangles",
    "(Tensor image, Tensor points, Tensor triangles, Tensor neighbors, Tensor centers, "
    "Tensor covariances, Tensor grid, int first, int num) -> (Tensor, Tensor, Tensor)",
)


def _arguments(image, points, triangles, neighbors, centers, covariances, grid, first, num):
    """What either kernel is called with, and the three of these that it writes."""
    total, side = len(triangles), math.isqrt(len(grid))
    shapes = [tuple(part.shape) for part in (triangles, neighbors, centers, covariances)]
    if (
        shapes != [(total, 3), (total, 3), (total, 2), (total, 3)]
        or grid.shape != (side * side, 2)
        or side % 4
        or not 8 <= side <= 16
        or not 0 <= first <= first + num <= total
        or 0 in image.shape
    ):
        raise ValueError(
            "triangles and neighbors [T, 3], centers [T, 2], covariances [T, 3], a grid [side², 2] "
            "whose side is 8, 12 or 16, a range of these, a picture with pixels, "
            f"got {shapes}, {list(grid.shape)}, {num} from {first} and {list(image.shape)}"
        )
    sizes = (num, 3 * len(grid) + 19), (num, 9, len(image)), (num, 3)
    made = tuple(torch.empty(size, device=image.device) for size in sizes)
    arguments = (
        *(*image.shape, len(points), total, first, num, side),
        *(part.detach().float().contiguous() for part in (image, points)),
        *(part.contiguous() for part in (triangles, neighbors)),
        *(part.detach().float().contiguous() for part in (centers, covariances, grid)),
        *made,
    )
    return arguments, made


@torch.library.impl("instantgi::describe_triangles", "cpu")
def _(image, *inputs):
    arguments, made = _arguments(image, *inputs)
    native.call_cpu("describe_triangles", *arguments)
    return tuple(part.to(image.dtype) for part in made)


def describe_triangles_cuda(image, *inputs):
    (arguments, made), num = _arguments(image, *inputs), inputs[-1]
    bad = torch.zeros((), dtype=torch.int32, device=image.device)
    launch = ("describe_triangles", -(-num // 4), 128)  # a warp for each triangle
    native.call_cuda("describe_triangles", *launch, *arguments, bad)
    if int(bad):
        raise ValueError(
            "describe_triangles: a triangle names a point or a neighbor that is not there"
        )
    return tuple(part.to(image.dtype) for part in made)


torch.library.impl("instantgi::describe_triangles", "cuda", describe_triangles_cuda)


@torch.library.register_fake("instantgi::describe_triangles")
def _(image, points, triangles, neighbors, centers, covariances, grid, first, num):
    sizes = (num, 3 * grid.shape[0] + 19), (num, 9, image.shape[0]), (num, 3)
    return tuple(image.new_empty(size) for size in sizes)


def _mlp(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """Two hidden layers, ReLU."""
    return nn.Sequential(
        *(nn.Linear(inputs, hidden), nn.ReLU()),
        *(nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, outputs),
    )


class PublishedFields(nn.Module):
    """The fields of Instant-GI (2025, section 3.3), with named choices where we know better.

    A triangle's features are its ellipse (4), its shape (6), the picture at its corners and center
    (12), and the encoder's features there, reduced to 64. The BC field makes barycentric
    coordinates of the mean from these 86; the Σ field factors of the ellipse's semi-axes and a turn
    of it from these and the means of the triangle and of its neighbors (94); the opacity field,
    from the same, the share of the picture's color at the mean.

    Args:
        channels: of the encoder's features.
        padding: "zeros" beyond the picture as published, or "border".
        rotation: "logit" as published, sigmoid(logit(θ / 2π) + tanh o), which cannot turn an
            ellipse that lies flat; or "angle", θ + π/2 tanh o.
        triangle: "normalized" as published, corners in listed order in coordinates that reach from
            −1 to 1, over √area; or "pixels", from the corner opposite the longest edge on.
        centers: "corner" as published: the picture is sampled with pixel centers at j + 0.5 and
            drawn with pixel centers at j; or "shared": both at j + 0.5.
        color: "opacity" as published, or "field": RGB directly, the ablation of table 3.
        stride: pixels per feature in either direction; 1 as published.
    """

    stride: int
    padding: str
    rotation: str
    triangle: str
    centers: str
    color: str
    reduction: nn.Sequential
    barycentric: nn.Sequential
    shape: nn.Sequential
    opacity: nn.Sequential

    def __init__(
        self,
        channels: int = 64,
        padding: str = "zeros",
        rotation: str = "logit",
        triangle: str = "normalized",
        centers: str = "corner",
        color: str = "opacity",
        stride: int = 1,
    ):
        super().__init__()
        self.stride = stride
        choices = {
            "padding": (padding, ("zeros", "border")),
            "rotation": (rotation, ("logit", "angle")),
            "triangle": (triangle, ("normalized", "pixels")),
            "centers": (centers, ("corner", "shared")),
            "color": (color, ("opacity", "field")),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f'{name} must be one of {", ".join(known)}, got "{value}"')
        self.padding, self.rotation, self.triangle = padding, rotation, triangle
        self.centers, self.color = centers, color
        gathered = 4 * channels
        self.reduction = nn.Sequential(
            *(nn.Linear(gathered, gathered), nn.ReLU()),
            *(nn.Linear(gathered, 2 * channels), nn.ReLU()),
            *(nn.Linear(2 * channels, channels), nn.LayerNorm(channels)),
        )
        features = 4 + 6 + 12 + channels
        self.barycentric = _mlp(features, 3, features)
        self.shape = _mlp(features + 8, 3, features + 8)
        self.opacity = _mlp(features + 8, 1 if color == "opacity" else 3, features + 8)

    def forward(
        self, features: Float[Tensor, "F h w"], image: Float[Tensor, "C H W"], mesh: Mesh
    ) -> Attributes:
        height, width = image.shape[1:]
        half_size = image.new_tensor([width / 2, height / 2])
        corners = mesh.points[mesh.triangles]  # [T, 3, 2]
        ellipses = fit_published_ellipses(mesh.points, mesh.triangles)
        centers = (ellipses.centers / half_size - 1).clamp(-0.99999, 0.99999)
        turns = (ellipses.angles / (2 * math.pi)).clamp(1e-5, 0.99999)
        places = torch.cat([corners, ((centers + 1) * half_size)[:, None]], 1)  # [T, 4, 2]
        rgb = three_channels(image)
        colors = sample(rgb, places, height, width, self.padding).flatten(1)
        gathered = sample_features(features, places, self.stride, self.padding).flatten(1)
        minor, major = ellipses.semi_axes.unbind(1)
        known = [
            centers,
            (minor / (major + 1e-4))[:, None],
            turns[:, None],
            self._triangle_features(corners, half_size),
            colors,
            self.reduction(gathered),
        ]
        known = torch.cat(known, 1)
        weights = self.barycentric(known).float().softmax(1)  # [T, 3]
        limit = 1 - 1e-6
        normalized = ((weights[:, :, None] * (corners / half_size - 1)).sum(1)).clamp(-limit, limit)
        around = normalized.detach()[mesh.neighbors].flatten(1)  # [T, 6]
        known = torch.cat([normalized.detach(), around, known], 1)
        means = (normalized + 1) * half_size
        factors, turn = self.shape(known).float().split([2, 1], 1)
        scales = scale_factor(factors) * ellipses.semi_axes
        rotations = self._rotations(turns, turn[:, 0])
        said = self.opacity(known).float()
        if self.color == "opacity":
            at_mean = sample(image, means.detach(), height, width, self.padding)
            drawn = said.sigmoid() * at_mean
        elif len(image) == 3:
            drawn = said
        else:
            raise ValueError(f"a color field says RGB, the picture has {len(image)} channels")
        if self.centers == "corner":
            means = means + 0.5
        cholesky = cholesky_from_scales_rotations(scales.clamp_min(1e-3), rotations)
        return Attributes(means, cholesky, drawn, scales)

    def _triangle_features(self, corners: Tensor, half_size: Tensor) -> Tensor:
        if self.triangle == "pixels":
            corners = canonical_corners(corners)
        else:
            corners = corners / half_size
        a, b, c = corners.unbind(1)
        doubled_area = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs()
        least = 1e-12 if self.triangle == "normalized" else 0.1
        root = (doubled_area / 2).clamp_min(least).sqrt()
        return ((corners - corners.mean(1, keepdim=True)) / root[:, None, None]).flatten(1)

    def _rotations(self, turns: Tensor, said: Tensor) -> Tensor:
        if self.rotation == "logit":
            return 2 * math.pi * (turns.logit() + said.tanh()).sigmoid()
        return 2 * math.pi * turns + math.pi / 2 * said.tanh()


def canonical_corners(corners: Float[Tensor, "T 3 2"]) -> Float[Tensor, "T 3 2"]:
    """The same triangles, each from the corner opposite its longest edge on, in the same sense."""
    opposite = (corners.roll(-1, 1) - corners.roll(-2, 1)).square().sum(2)  # [T, 3]
    order = (opposite.argmax(1, keepdim=True) + torch.arange(3, device=corners.device)) % 3
    return corners.gather(1, order[:, :, None].expand(-1, -1, 2))


def scale_factor(said: Tensor) -> Tensor:
    """f_s: any number to (0, 3), 0 to ½ (the released code; the paper has no line in the middle).

    With x = 50 tanh(o / 50): ½ e^{x/2} below 0; ½ + x/4 up to 2; then 3 − ½ log(1 + e^{5 − x/2}).
    """
    x = 50 * (0.02 * said).tanh()
    low = 0.5 * (x.clamp(max=0) / 2).exp()
    high = 3 - 0.5 * F.softplus(5 - x.clamp(min=2) / 2)
    return torch.where(x < 0, low, torch.where(x < 2, x / 4 + 0.5, high))


class FittedEllipses(nn.Module):
    """No field at all: the ellipse with half its semi-axes, the picture's color at its center.

    The ablation "fitted ellipse directly" (Instant-GI, 2025, table 3).
    """

    def forward(
        self, features: Float[Tensor, "F h w"], image: Float[Tensor, "C H W"], mesh: Mesh
    ) -> Attributes:
        ellipses = fit_published_ellipses(mesh.points, mesh.triangles)
        scales = ellipses.semi_axes.clamp_min(1e-3) / 2
        cholesky = cholesky_from_scales_rotations(scales, ellipses.angles)
        height, width = image.shape[1:]
        colors = sample(image, ellipses.centers, height, width)
        return Attributes(ellipses.centers, cholesky, colors, scales)


class LocalFields(nn.Module):
    """Our fields: every triangle in its own frame, in which all triangles are alike.

    With L the Cholesky factor of the triangle's covariance (plus 0.05 px² I), places are z = L⁻¹ (p
    − center): the corners lie about 2.8 from the origin. The picture is sampled on a grid of `grid`
    x `grid` places up to |z| = `reach`, less its mean and over its deviation, so that brightness
    and contrast do not matter. With these go the corners and the neighbors' centers, in the order
    of their angle, the triangle's size and aspect, and the encoder's features at the center. One
    MLP reads this; a second reads its result and that of the three neighbors, so that neighbors can
    agree on who covers what.

    What comes out is local too: the mean is center + L u, |u| < 2.5; the Cholesky factor is L
    [[eᵃ, 0], [b, eᶜ]] with a, c within ln 2 ± 1.5; the color is a weighted sum of nine samples
    around the triangle, so that any number of channels will do, over what all Gaussians together
    weigh at the mean: neighbors overlap, and without that division their colors would add up.

    Args:
        channels: of the encoder's features; 0 for none.
        hidden: units of each hidden layer.
        grid, reach: see above.
        stride: pixels per feature in either direction.
        color: "samples", or "field": RGB directly, for the ablation.
    """

    stride: int
    color: str
    channels: int
    alone: nn.Sequential
    message: nn.Linear
    together: nn.Sequential
    memory: nn.Linear
    out: nn.Linear

    def __init__(
        self,
        channels: int,
        hidden: int = 128,
        grid: int = 8,
        reach: float = 6.0,
        stride: int = 1,
        color: str = "samples",
    ):
        super().__init__()
        self.stride, self.color = stride, color
        if grid % 4 or grid < 8:
            raise ValueError(f"grid must be a multiple of 4 from 8 on, got {grid}")
        self.grid: Tensor
        side = ((torch.arange(grid) + 0.5) / grid * 2 - 1) * reach
        self.register_buffer("grid", torch.cartesian_prod(side, side).flip(1), persistent=False)
        self.channels = channels
        self.alone = nn.Sequential(
            *(nn.Linear(3 * grid * grid + 19 + channels, hidden), nn.GELU()),
            *(nn.Linear(hidden, hidden), nn.GELU()),
        )
        self.message = nn.Linear(hidden, hidden // 4)
        self.together = nn.Sequential(
            *(nn.Linear(hidden + 3 * (hidden // 4), hidden), nn.GELU()),
            *(nn.Linear(hidden, hidden), nn.GELU()),
        )
        self.memory = nn.Linear(hidden, MEMORY)
        self.out = nn.Linear(hidden, 5 + (3 if color == "field" else 9))
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            if color == "field":
                self.out.bias[5:] = 0.5
            else:
                self.out.bias[5 + 4] = 1  # the color at the center

    def forward(
        self, features: Float[Tensor, "F h w"] | None, image: Float[Tensor, "C H W"], mesh: Mesh
    ) -> Attributes:
        def second(chunk: slice, seen: Any, around: Tensor) -> tuple[Tensor, ...]:
            alone, described = seen
            known = alone + self.together(torch.cat([alone, around], 1))
            said = self.out(known).float()  # from here on no half precision
            shape = _shape(said[:, :5], described.frames, mesh.centers[chunk])
            return *shape, self._colors(said[:, 5:], described.nine), self.memory(known)

        parts = in_two_rounds(
            len(mesh.triangles),
            lambda chunk: self._look(features, image, mesh, chunk),
            lambda seen: self.message(seen[0]),
            mesh.neighbors,
            second,
        )
        means, cholesky, colors, memory = (torch.cat(fields) for fields in zip(*parts, strict=True))
        made = Attributes(means, cholesky, colors, deviations(cholesky), memory)
        return _shared_out(made, *image.shape[1:])

    def _colors(self, said: Tensor, nine: Float[Tensor, "T 9 C"]) -> Float[Tensor, "T C"]:
        if self.color != "field":
            return (nine * said[:, :, None]).sum(1)
        if nine.shape[2] != 3:
            raise ValueError(f"a color field says RGB, the picture has {nine.shape[2]} channels")
        return said

    def _look(
        self, features: Tensor | None, image: Tensor, mesh: Mesh, chunk: slice
    ) -> tuple[Tensor, Described]:
        """What triangles make of what they see alone, and what they saw."""
        described = describe_triangles(
            image, mesh, self.grid, chunk.start, chunk.stop - chunk.start
        )
        known = described.known
        if features is not None and self.channels:
            sampled = sample_features(features, mesh.centers[chunk], self.stride)
            known = torch.cat([known, sampled], 1)
        return self.alone(known), described._replace(known=known[:0])


def _shape(
    said: Float[Tensor, "T 5"], frames: Float[Tensor, "T 3"], centers: Float[Tensor, "T 2"]
) -> tuple[Float[Tensor, "T 2"], Float[Tensor, "T 3"]]:
    """Means and Cholesky factors from what is said of them in each triangle's frame."""
    l11, l21, l22 = frames.unbind(1)
    u = 2.5 * (said[:, :2] / 2.5).tanh()
    a, c = (math.log(2) + 1.5 * (said[:, [2, 4]] / 1.5).tanh()).exp().unbind(1)
    b = 2 * said[:, 3]
    shift = torch.stack([l11 * u[:, 0], l21 * u[:, 0] + l22 * u[:, 1]], 1)
    return centers + shift, torch.stack([l11 * a, l21 * a + l22 * b, l22 * c], 1)


def deviations(cholesky: Float[Tensor, "T 3"]) -> Float[Tensor, "T 2"]:
    """The standard deviations along the axes, the smaller first."""
    l11, l21, l22 = cholesky.unbind(1)
    half_trace, det = (l11**2 + l21**2 + l22**2) / 2, (l11 * l22).abs()
    larger = (half_trace + (half_trace**2 - det**2).clamp_min(1e-12).sqrt()).sqrt()
    return torch.stack([det / larger, larger], 1)


def _shared_out(attributes: Attributes, height: int, width: int) -> Attributes:
    """Colors over the sum of all weights at each mean, which gets no gradient."""
    means, cholesky = attributes.means.detach(), attributes.cholesky.detach()
    weights = Gaussians(means, cholesky, torch.ones_like(means[:, :1]))
    coverage = sample(rasterize(weights, height, width), means, height, width)  # [T, 1]
    return attributes._replace(colors=attributes.colors / coverage.clamp_min(0.5))


def three_channels(image: Float[Tensor, "C ..."]) -> Float[Tensor, "3 ..."]:
    """What the networks look at: gray becomes three equal channels, opacity is left out."""
    if len(image) in (1, 2):
        return image[:1].expand(3, *image.shape[1:])
    return image[:3]
