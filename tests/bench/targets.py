"""Prints how many steps of a fit are enough to make a training target of it.

python tests/bench/targets.py --images DIR [--steps 25,50,100] [--limit K] [--checkpoint NAME]
                               [-o OUT.json]

For each number of steps the position map of the fit (`data.prepare`) is compared with that of the
longest fit: correlation, and points per pixel. Then the network's fields get a mesh dithered from
the map: PSNR with solved colors, and after 20 and 50 steps. The last row is the image gradient.
"""

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from bench.tables import Table, save_tables
from bench.timing import conditions

from data.images import list_pictures, read_rgb
from data.prepare import TargetRecipe, target_map
from instantgi.fit import fit_image, solve_colors
from instantgi.metrics import psnr
from instantgi.models import InstantGI
from instantgi.models.instantgi import mixed_precision
from instantgi.points import make_mesh
from instantgi.points.gradient import gradient_map
from instantgi.render import rasterize

COLUMNS = {"map of": "{}", "seconds": "{:.2f}", "correlation": "{:.3f}"}
COLUMNS |= {"points per pixel": "{:.3f}", "solved": "{:.2f}"}
COLUMNS |= {"20 steps": "{:.2f}", "50 steps": "{:.2f}"}
DENSITY = 0.11
LARGEST = 512  # pixels; larger pictures are cut


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--steps", default="25,50,100,300,1000")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    paths = list_pictures(options.images)[: options.limit]
    images = [read_rgb(path)[:, :LARGEST, :LARGEST].contiguous() for path in paths]
    budgets = sorted(int(steps) for steps in options.steps.split(","))
    network = InstantGI.from_pretrained(options.checkpoint)
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()))
    note = f"{len(images)} pictures, {DENSITY} Gaussians per pixel"
    print(note + "\n")
    table = Table(COLUMNS)
    made = [fits(image, budgets) for image in images]
    longest = [maps[budgets[-1]][0] for maps in made]
    for steps in budgets:
        row = [maps[steps] for maps in made]
        table.add(f"{steps} steps", *means(network, images, row, longest))
    row = [(gradient_map(image), math.nan) for image in images]
    _, *others = means(network, images, row, longest)
    table.add("image gradient", None, *others)
    save_tables(options.output, [table], note)


def fits(image: torch.Tensor, budgets: list[int]) -> dict[int, tuple[torch.Tensor, float]]:
    """The map of a fit of its own for each number of steps, and the seconds that it took."""
    height, width = image.shape[1:]
    made = {}
    for steps in budgets:
        recipe = dataclasses.replace(TargetRecipe(), iterations=steps)
        count = round(DENSITY * height * width)
        began = time.perf_counter()
        fitted = fit_image(image, num_gaussians=count, iterations=steps)
        seconds = time.perf_counter() - began
        reached = psnr(rasterize(fitted, height, width), image)
        made[steps] = target_map(fitted, height, width, reached, recipe), seconds
    return made


@torch.no_grad()
def means(
    network: InstantGI,
    images: list[torch.Tensor],
    maps: list[tuple[torch.Tensor, float]],
    longest: list[torch.Tensor],
) -> list[float]:
    rows = []
    for image, (position_map, seconds), reference in zip(images, maps, longest, strict=True):
        size = image.shape[1:]
        both = torch.stack([position_map.flatten(), reference.flatten()])
        with mixed_precision(image):
            features, _ = network.encode(image[None])
            mesh = make_mesh(position_map, 3, round(DENSITY * image[0].numel()))
            attributes = network.fields(features[0], image, mesh)
            gaussians = network.look(attributes, image, mesh)[-1]
        solved = solve_colors(gaussians, image, 10)
        row = [seconds, float(torch.corrcoef(both)[0, 1]), float(position_map.mean()) / 9]
        row.append(psnr(rasterize(solved, *size), image))
        for steps in (20, 50):
            row.append(psnr(rasterize(fit_image(image, solved, iterations=steps), *size), image))
        rows.append(row)
    return torch.tensor(rows).mean(0).tolist()


if __name__ == "__main__":
    main()
