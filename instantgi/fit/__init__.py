"""image → Gaussians, by optimisation."""

from collections.abc import Callable
from typing import Any

from instantgi.fit.colors import solve_colors
from instantgi.fit.gaussianimage import GaussianImage
from instantgi.fit.imagegs import ImageGS
from instantgi.fit.lig import LIG
from instantgi.fit.local_adam import LocalAdam
from instantgi.fit.loop import Fitter, Progress, fit_image
from instantgi.fit.sgi import SGI
from instantgi.fit.splatting import Splatting
from instantgi.fit.start import default_count, heuristic_start

METHODS: dict[str, Callable[..., Fitter[Any]]] = {
    "instantgi": LocalAdam,
    "gaussianimage": GaussianImage,
    "gaussianimage-rs": lambda: GaussianImage("rs"),
    "lig": LIG,
    "imagegs": ImageGS,
    "sgi": SGI,
    # as published, for comparison only: the first two with what is wrong there, which no file of
    # LIG can hold; SGI's choices on exact kernels
    "lig-paper": lambda: LIG(paper=True),
    "imagegs-paper": lambda: ImageGS(paper=True),
    "sgi-paper": lambda: SGI(paper=True),
    "3dgs": Splatting,
}


def make_fitter(method: str, **choices: Any) -> Fitter[Any]:
    """The fitter of this name, with these arguments of its class.

    Raises:
        ValueError: if there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f'method must be one of {", ".join(METHODS)}, got "{method}"')
    return METHODS[method](**choices)


__all__ = [
    "Fitter",
    "GaussianImage",
    "ImageGS",
    "LIG",
    "LocalAdam",
    "METHODS",
    "Progress",
    "SGI",
    "Splatting",
    "default_count",
    "fit_image",
    "heuristic_start",
    "make_fitter",
    "solve_colors",
]
