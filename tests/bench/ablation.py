"""Prints what each part of the network's start is worth, on the pictures of a folder.

python tests/bench/ablation.py --images DIR [--checkpoint NAME] [--num-gaussians N] [--limit K]
                                [-o OUT.json]

The rows follow table 3 of Instant-GI (2025), with a trained network of ours; "solved" is with 10
iterations of the color solve, the columns after it are steps of the recipe "instantgi".
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.tables import Table, save_tables
from bench.timing import conditions

from instantgi.fit import fit_image, heuristic_start, solve_colors
from instantgi.gaussians import Gaussians
from instantgi.images import read_image
from instantgi.metrics import psnr
from instantgi.models import InstantGI
from instantgi.models.fields import FittedEllipses
from instantgi.models.instantgi import mixed_precision
from instantgi.points import make_mesh
from instantgi.points.gradient import gradient_map
from instantgi.render import rasterize

STEPS = (20, 50)
COLUMNS = {"variant": "{}", "Gaussians": "{:.0f}", "alone": "{:.2f}"}
COLUMNS |= dict.fromkeys(("alone, 256 a tile", "solved", "20 steps", "50 steps"), "{:.2f}")


def variants(network: InstantGI, num: int) -> dict[str, Callable[[torch.Tensor], Gaussians]]:
    def network_on(
        position_map: Callable, fields: torch.nn.Module | None = None, share=1.0, looks=True
    ) -> Callable:
        def make(image: torch.Tensor) -> Gaussians:
            with mixed_precision(image):
                features, maps = network.encode(image[None])
                mesh = make_mesh(position_map(image, maps[0]), 3, num)
                made = (fields or network.fields)(share * features[0], image, mesh)
                return network.look(made, image, mesh)[-1] if looks else Gaussians(*made[:3])

        return make

    def predicted(image: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        return said

    return {
        "network": lambda image: network(image, num_gaussians=num),
        "dithered image gradient": network_on(lambda image, said: gradient_map(image)),
        "no look at the error": network_on(predicted, looks=False),
        "encoder's features left out": network_on(predicted, share=0),
        "fitted ellipse directly": network_on(predicted, FittedEllipses(), looks=False),
        "own number, k = 3": lambda image: network(image, patch_size=3),
        "own number, k = 4": lambda image: network(image, patch_size=4),
        "own number, k = 5": lambda image: network(image, patch_size=5),
        "heuristic start": lambda image: heuristic_start(image, num),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--num-gaussians", type=int, default=43_000)
    parser.add_argument("--limit", type=int)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    network = InstantGI.from_pretrained(options.checkpoint)
    paths = sorted(options.images.glob("*.png"))[: options.limit]
    images = [read_image(path) for path in paths]
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()))
    note = f"{len(images)} pictures, mean PSNR in dB of 8 bits; at most {options.num_gaussians}"
    print(note + "\n")
    table = Table(COLUMNS)
    for name, make in variants(network, options.num_gaussians).items():
        table.add(name, *means([measure(make, image) for image in images]))
    save_tables(options.output, [table], note)


def means(measured: list[list[float]]) -> list[float]:
    return torch.tensor(measured).mean(0).tolist()


@torch.no_grad()
def measure(make: Callable[[torch.Tensor], Gaussians], image: torch.Tensor) -> list[float]:
    size = image.shape[1:]
    began = make(image)
    solved = solve_colors(began, image, 10)
    row = [float(len(began)), psnr(rasterize(began, *size), image)]
    row.append(psnr(rasterize(began, *size, max_per_tile=256), image))
    row.append(psnr(rasterize(solved, *size), image))
    for steps in STEPS:
        row.append(psnr(rasterize(fit_image(image, solved, iterations=steps), *size), image))
    return row


if __name__ == "__main__":
    main()
