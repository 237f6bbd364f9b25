"""Training targets: a fit of every picture tells where Gaussians belong.

A folder of targets has an item per picture: `<id>.webp`, the picture without loss; `<id>.map.png`,
its position map in 8 bits; and `<id>.json`, which names the checksums of both, the source, the
settings, and what the fit reached. The JSON is written last, so an item exists whole or not at all;
preparing again does only what is missing. `manifest.json` sums the items up.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from data.images import read_rgb
from instantgi.files import replace_on_success
from instantgi.fit import fit_image
from instantgi.gaussians import Gaussians
from instantgi.images import to_8bit
from instantgi.metrics import psnr
from instantgi.native import cpu_library
from instantgi.render import rasterize

MANIFEST, FAILURES = "manifest.json", "failures-"
WIDEST = 16383  # pixels that WebP can hold on a side
DENSITIES = ("absolute", "code", "paper")
DECIBELS_PER_DOUBLING = 4.0  # of the number of Gaussians, about, from 0.03 to 0.2 per pixel
FEWEST, MOST = 0.02, 0.2  # Gaussians per pixel


@dataclasses.dataclass(frozen=True)
class TargetRecipe:
    """How a position map is made.

    Attributes:
        density: from the distance r to the K-th nearest Gaussian, K = `neighbors`: "paper" K / π r²
            (Instant-GI, 2025, eq. 6) and "code" K / √r (the released code), both cut at three
            deviations from the mean and stretched to [0, 1] picture by picture; "absolute" the
            expected points per 3x3 cell, 9 / 2 · K / π r² (a mesh has two triangles per point),
            times the factor that brings the picture to `psnr`, cut at 1.
        iterations: of the fit, recipe "instantgi".
        gaussians_per_pixel: in the fit.
        psnr: dB; of "absolute" alone. A doubling of the number is taken as 4 dB.
    """

    density: str = "absolute"
    neighbors: int = 10
    iterations: int = 300
    gaussians_per_pixel: float = 0.11
    psnr: float = 40.0

    def __post_init__(self) -> None:
        if self.density not in DENSITIES:
            raise ValueError(f'density must be one of {", ".join(DENSITIES)}, got "{self.density}"')


class Item(NamedTuple):
    """A picture and its target, on disk."""

    name: str
    folder: Path
    record: dict[str, Any]

    def read(self) -> tuple[Tensor, Tensor]:
        """The picture [3, H, W] and its map [H, W], both uint8.

        Raises:
            ValueError: if a file is missing, damaged, or not the one that was written.
        """
        parts = []
        for kind in ("webp", "map.png"):
            path = self.folder / f"{self.name}.{kind}"
            data = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(data).hexdigest() != self.record["sha256"][kind]:
                raise ValueError(
                    f"{path}: is missing or not what was written; prepare the targets again"
                )
            parts.append(torch.from_numpy(np.array(Image.open(path))))
        return parts[0].movedim(2, 0).contiguous(), parts[1]

    def is_whole(self) -> bool:
        try:
            self.read()
        except (OSError, ValueError, KeyError, Image.DecompressionBombError):
            return False
        return True


def prepare_picture(path: str | Path, folder: str | Path, recipe: TargetRecipe) -> dict[str, Any]:
    """Make the item of one picture, unless it is there already; its record.

    Raises:
        ImageError, OSError: if the picture cannot be read or the item not be written.
    """
    path, folder = Path(path), Path(folder)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = f"{path.stem}-{digest[:8]}"
    settings = dataclasses.asdict(recipe)
    there = _read_record(folder / f"{name}.json")
    if there and there["settings"] == settings and Item(name, folder, there).is_whole():
        return there
    image = read_rgb(path)
    height, width = image.shape[1:]
    if max(height, width) > WIDEST:
        raise ValueError(f"has {width}x{height} pixels, more than {WIDEST} on a side")
    count = max(2, round(recipe.gaussians_per_pixel * height * width))
    fitted = fit_image(image, num_gaussians=count, iterations=recipe.iterations)
    reached = psnr(rasterize(fitted, height, width), image)
    position_map = target_map(fitted, height, width, reached, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = to_8bit(image).movedim(0, 2).numpy()
    with replace_on_success(folder / f"{name}.webp") as partial:
        Image.fromarray(pixels).save(partial, lossless=True, quality=60)
    with replace_on_success(folder / f"{name}.map.png") as partial:
        Image.fromarray(to_8bit(position_map).numpy()).save(partial)
    record = {
        "name": name,
        "source": path.name,
        "source_sha256": digest,
        "height": height,
        "width": width,
        "num_gaussians": len(fitted),
        "psnr": None if math.isinf(reached) else reached,
        "points": float(position_map.mean()) / 9 * height * width,
        "settings": settings,
        "sha256": {
            kind: hashlib.sha256((folder / f"{name}.{kind}").read_bytes()).hexdigest()
            for kind in ("webp", "map.png")
        },
    }
    with replace_on_success(folder / f"{name}.json") as partial:
        partial.write_text(json.dumps(record), encoding="utf-8")
    return record


def target_map(
    gaussians: Gaussians, height: int, width: int, reached: float, recipe: TargetRecipe
) -> Float[Tensor, "{height} {width}"]:
    """The position map of a finished fit that reached so many dB, in [0, 1]; see `TargetRecipe`."""
    distance = distance_to_neighbor(gaussians.means, height, width, recipe.neighbors)
    if recipe.density == "code":
        return _stretch(recipe.neighbors / distance.sqrt())
    density = recipe.neighbors / (math.pi * distance**2)
    if recipe.density == "paper":
        return _stretch(density)
    factor = 2 ** ((recipe.psnr - min(reached, 100)) / DECIBELS_PER_DOUBLING)
    wanted = factor * len(gaussians) / (height * width)
    factor *= min(max(wanted, FEWEST), MOST) / wanted
    return (9 / 2 * factor * density).clamp(max=1).float()


def distance_to_neighbor(
    means: Float[Tensor, "N 2"], height: int, width: int, number: int
) -> Float[Tensor, "{height} {width}"]:
    """Pixels from every pixel's center to the number-th nearest mean, at least ½.

    Where there are fewer means, to the farthest.
    """
    from scipy.spatial import KDTree

    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    places = np.stack([x.ravel(), y.ravel()], 1)
    number = min(number, len(means))
    only: Any = [number]  # a list asks for that neighbor alone, without those before it
    distances = KDTree(means.double().numpy()).query(places, k=only)[0]
    return torch.from_numpy(distances).reshape(height, width).clamp_min(0.5)


def _stretch(density: Tensor) -> Tensor:
    """Mean ± three deviations, no farther than the extremes, become 0 and 1."""
    mean, deviation = density.mean(), density.std()
    high = torch.minimum(mean + 3 * deviation, density.max())
    low = torch.maximum(mean - 3 * deviation, density.min())
    return ((density - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()


def read_items(folder: str | Path) -> list[Item]:
    """The items of a folder of targets, by name.

    Raises:
        FileNotFoundError: if there is no such folder, or no item in it.
    """
    folder = Path(folder)
    records = [_read_record(path) for path in sorted(folder.glob("*.json"))]
    items = [Item(record["name"], folder, record) for record in records if record]
    if not items:
        raise FileNotFoundError(
            f"{folder}: holds no training targets; make them with "
            "`python train.py predict --config configs/prepare.yaml`"
        )
    return items


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"name", "source", "height", "width", "sha256", "settings"}
    return record if isinstance(record, dict) and needed <= record.keys() else None


def write_manifest(folder: Path) -> dict[str, Any]:
    """Sum the items of a folder up in `manifest.json`, and what was left out; the same is returned.

    Raises:
        FileNotFoundError: if there is no item.
    """
    records = [item.record for item in read_items(folder)]
    lists = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"{FAILURES}*"))]
    failures = [failure for listed in lists for failure in listed]
    manifest = {
        "pictures": len(records),
        "pixels": sum(record["height"] * record["width"] for record in records),
        "settings": records[0]["settings"],
        "failures": failures,
        "items": {record["name"]: record["sha256"] for record in records},
    }
    with replace_on_success(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


class PrepareTargets(lightning.LightningModule):
    """`train.py predict`: every process takes its share of the pictures of the data module.

    A picture that cannot be read is reported and left out; the others go on.
    """

    def __init__(
        self,
        folder: str,
        density: str = "absolute",
        neighbors: int = 10,
        iterations: int = 300,
        gaussians_per_pixel: float = 0.11,
        psnr: float = 40.0,
    ):
        super().__init__()
        self.folder = Path(folder)
        self.recipe = TargetRecipe(density, neighbors, iterations, gaussians_per_pixel, psnr)
        self.failures: list[dict[str, str]] = []

    def on_predict_start(self) -> None:
        cpu_library()  # without the kernels no picture can be prepared: once, not for each of them

    def predict_step(self, batch: list[str], batch_index: int) -> list[dict[str, Any]]:
        return list(self._prepare(batch))

    def _prepare(self, paths: list[str]) -> Iterator[dict[str, Any]]:
        for path in paths:
            try:
                yield prepare_picture(path, self.folder, self.recipe)
            except Exception as error:  # whatever one picture does, the others go on
                self.failures.append({"path": path, "error": str(error)})
                named = str(error) if str(error).startswith(path) else f"{path}: {error}"
                print(f"left out: {named}", flush=True)

    def on_predict_end(self) -> None:
        """Every process writes what there is by then: none has to wait, and the last is right."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rank = self.trainer.global_rank
        with replace_on_success(self.folder / f"{FAILURES}{rank}.json") as partial:
            partial.write_text(json.dumps(self.failures), encoding="utf-8")
        try:
            manifest = write_manifest(self.folder)
        except FileNotFoundError:
            raise ValueError(f"{self.folder}: not one picture could be prepared") from None
        left_out = len(manifest["failures"])
        print(f"{self.folder}: {manifest['pictures']} pictures, {left_out} left out", flush=True)
