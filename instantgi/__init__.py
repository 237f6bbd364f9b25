"""Pictures as 2D Gaussians: predicted, fitted, drawn at any size, on a plain CPU and exactly."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instantgi.codec import decode, encode, open_file
    from instantgi.fit import fit_image
    from instantgi.gaussians import Gaussians
    from instantgi.images import read_image, write_image
    from instantgi.models import InstantGI
    from instantgi.render import rasterize
    from instantgi.render.draw import pixels

    open = open_file

__version__ = "0.1.0"
__all__ = [  # not open: a star import would hide the one of Python
    "Gaussians",
    "InstantGI",
    "decode",
    "encode",
    "fit_image",
    "pixels",
    "rasterize",
    "read_image",
    "write_image",
]
HOMES = {
    "Gaussians": ("gaussians", "Gaussians"),
    "InstantGI": ("models", "InstantGI"),
    "decode": ("codec", "decode"),
    "encode": ("codec", "encode"),
    "fit_image": ("fit", "fit_image"),
    "open": ("codec", "open_file"),
    "pixels": ("render.draw", "pixels"),
    "rasterize": ("render", "rasterize"),
    "read_image": ("images", "read_image"),
    "write_image": ("images", "write_image"),
}


def __getattr__(name: str) -> Any:
    """Each from its module when it is asked for: torch takes a second to load."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = HOMES[name]
    return getattr(importlib.import_module(f"instantgi.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
