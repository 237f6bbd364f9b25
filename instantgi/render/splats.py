"""The picture of Gaussians in space, by the kernels of gsplat; see `instantgi.fit.splatting`."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.representations import Splats

DEPTH = 8.0  # of the middle of the cube that splats start in, from the camera
DILATION = 0.3  # px², added to the variances in the picture
DEGREE = 3  # of the spherical harmonics of colors


def draw_splats(splats: Splats) -> Float[Tensor, "3 H W"]:
    """The picture, not clamped: splats are blended from front to back over white.

    The camera looks along z and sees 90 degrees of the picture's width. Differentiable.

    Raises:
        RuntimeError: without an NVIDIA GPU, or gsplat.
    """
    height, width, means = splats.height, splats.width, splats.means
    view = torch.eye(4, device=means.device)
    view[2, 3] = DEPTH
    focal = width / 2
    camera = [[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]
    drawn, _, _ = _rasterization(means.device)(
        means=means,
        quats=splats.rotations,
        scales=splats.log_scales.exp(),
        opacities=splats.raw_opacities.sigmoid(),
        colors=splats.harmonics,
        viewmats=view[None],
        Ks=torch.tensor([camera], device=means.device),
        width=width,
        height=height,
        eps2d=DILATION,
        sh_degree=DEGREE,
        packed=False,
        backgrounds=torch.ones(1, 3, device=means.device),
    )  # [1, H, W, 3]
    return drawn[0].movedim(2, 0)


def _rasterization(device: torch.device) -> Callable[..., Any]:
    if device.type != "cuda":
        raise RuntimeError("3dgs needs an NVIDIA GPU, for gsplat; leave the method out")
    try:
        from gsplat import rasterization  # pyright: ignore[reportMissingImports]: an extra
    except ImportError as error:
        raise RuntimeError('3dgs needs gsplat: pip install "instantgi[gsplat]"') from error
    return rasterization
