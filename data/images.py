"""Folders of pictures."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from instantgi.images import flatten_alpha, read_image

SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .pgm .png .pnm .ppm .tif .tiff .webp".split())


def list_pictures(root: str | Path) -> list[Path]:
    """All pictures below a folder, by name.

    Raises:
        FileNotFoundError: if there is no such folder, or no picture in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder of pictures")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(
            f"{root}: holds no pictures ({', '.join(sorted(SUFFIXES))}); give another folder"
        )
    return found


def read_rgb(path: str | Path) -> Float[Tensor, "3 H W"]:
    """A picture in [0, 1], three channels: gray is repeated, opacity is laid over white."""
    image = read_image(path)
    if len(image) in (2, 4):
        image = flatten_alpha(image, "white")
    return image if len(image) == 3 else image.expand(3, -1, -1).contiguous()
