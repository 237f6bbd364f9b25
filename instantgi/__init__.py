"""Pictures as 2D Gaussians: fitted, drawn at any size, on a plain CPU and exactly."""

from instantgi.fit import fit_image
from instantgi.gaussians import Gaussians
from instantgi.images import read_image, write_image
from instantgi.render import rasterize

__version__ = "0.1.0"
__all__ = ["Gaussians", "fit_image", "rasterize", "read_image", "write_image"]
