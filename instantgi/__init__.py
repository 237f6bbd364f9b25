"""Pictures as 2D Gaussians: predicted, fitted, drawn at any size, on a plain CPU and exactly."""

from typing import TYPE_CHECKING, Any

from instantgi.fit import fit_image
from instantgi.gaussians import Gaussians
from instantgi.images import read_image, write_image
from instantgi.render import rasterize

if TYPE_CHECKING:
    from instantgi.models import InstantGI

__version__ = "0.1.0"
__all__ = ["Gaussians", "InstantGI", "fit_image", "rasterize", "read_image", "write_image"]


def __getattr__(name: str) -> Any:
    """The network only when it is asked for: its imports take half a second."""
    if name == "InstantGI":
        from instantgi.models import InstantGI

        return InstantGI
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
