"""Prints where the time of a fit goes: the start, the colors, one step of each method.

python tests/bench/fit.py [IMAGE] [--num-gaussians N] [--method sgi] [--runs N] [-o OUT.json]

"raster" is the forward and backward pass of the step alone, run in turns with the whole step;
"outside" is the share of the step that is neither: loss, parameters, optimiser. With --method sgi
one step of it instead, at full size: the passes of its rasterizer, of the networks that make
Gaussians, of noise and bits, and in these of the context with its hash grid.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.tables import Table, save_tables
from bench.timing import conditions, milliseconds, spread

from instantgi.fit import SGI, heuristic_start, make_fitter, solve_colors
from instantgi.images import read_image
from instantgi.points import add_border_points, dither, fit_ellipses, scale_map, triangulate
from instantgi.points.gradient import gradient_map
from instantgi.render.ops import (
    LOCAL,
    PARAMETERS,
    order_by_place,
    rasterize_error,
    rasterize_error_backward,
    to_blocks,
)

SUMS = ("instantgi", "gaussianimage", "gaussianimage-rs")  # steps of one rasterization each way
PICTURE = Path(__file__).parents[2] / "assets" / "kodim23.png"


def start_stages(path: Path, num_gaussians: int) -> dict:
    """Each arrow from the file to the colors, as a function of nothing."""
    image = read_image(path)
    height, width = image.shape[1:]
    density = gradient_map(image)
    scaled = scale_map(density, num_gaussians // 2 - 700, 3)
    inner = dither(scaled, 3)
    points = add_border_points(inner, height, width)
    triangles, _ = triangulate(points)
    start = heuristic_start(image, num_gaussians)
    return {
        "read": lambda: read_image(path),
        "position map": lambda: gradient_map(image),
        "scale map": lambda: scale_map(density, num_gaussians // 2 - 700, 3),
        "dither": lambda: dither(scaled, 3),
        "border": lambda: add_border_points(inner, height, width),
        "triangulate": lambda: triangulate(points),
        "ellipses": lambda: fit_ellipses(points, triangles),
        "colors, 10 iterations": lambda: solve_colors(start, image, 10),
        "read to colors, whole": lambda: solve_colors(
            heuristic_start(read_image(path), num_gaussians), image, 10
        ),
    }


def step_stages(method: str, image: torch.Tensor, num_gaussians: int) -> dict:
    fitter = make_fitter(method)
    fitter.start(image, None, num_gaussians, 0)
    for _ in range(10):
        fitter.step(0.0)
    height, width = image.shape[1:]
    target = to_blocks(image)

    now, ours = fitter.gaussians(), method == "instantgi"
    scene = (now.means, now.cholesky, now.colors)

    def raster() -> None:
        residual, _ = rasterize_error(*scene, target, height, width, not ours)
        coordinates = LOCAL if ours else PARAMETERS
        rasterize_error_backward(residual, *scene, height, width, 1.0, coordinates)

    return {"step": lambda: fitter.step(0.99), "raster": raster}


def seeds_stages(image: torch.Tensor, num_gaussians: int) -> dict:
    fitter = SGI(levels=1)
    fitter.start(image, None, num_gaussians, 0)
    for _ in range(10):
        fitter.step(0.5)
    height, width = image.shape[1:]
    target = to_blocks(image)
    now = fitter.gaussians().flat()
    scene = (now.means, now.cholesky, now.colors)
    order = order_by_place(now.means, height, width)
    values = fitter._numbers().detach().requires_grad_()

    def raster() -> None:
        residual, _ = rasterize_error(*scene, target, height, width, False, order)
        rasterize_error_backward(residual, *scene, height, width, 1.0, PARAMETERS, order)

    def networks() -> None:
        made = fitter._made(values, slice(None), fitter.colors, fitter.shapes)
        torch.autograd.backward([made.means, made.cholesky, made.colors], scene)

    def bits() -> None:
        cost = fitter._values(values.detach(), 0.5, False).cost
        assert cost is not None
        cost.backward()

    def context() -> None:
        assert fitter.placed is not None
        parts = fitter._context().floats(fitter.placed, fitter._sample())
        torch.autograd.backward(parts, [part.detach() for part in parts])

    step = {"step": lambda: fitter.step(0.5), "rasterizer": raster, "networks": networks}
    return step | {"noise, bits and context": bits, "context alone": context}


def print_seeds(image: torch.Tensor, options: argparse.Namespace, note: str) -> None:
    times = milliseconds(seeds_stages(image, options.num_gaussians), options.runs)
    stages = Table({"stage": "{}", "ms": "{:.2f}", "iqr": "{:.2f}", "of a step": "{:.0%}"})
    whole = spread(times["step"])[0]
    for name, values in times.items():
        stages.add(name, *spread(values), spread(values)[0] / whole)
    save_tables(options.output, [stages], note)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("image", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--num-gaussians", type=int, default=43_000)
    parser.add_argument("--method", choices=("sgi",), help="a step of this one instead")
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    image = read_image(options.image)
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()))
    size = f"{image.shape[2]}x{image.shape[1]}"
    note = f"{options.image.name}, {size}, {options.num_gaussians} Gaussians"
    print(note + "\n")
    if options.method:
        return print_seeds(image, options, note)
    stages = Table({"stage": "{}", "ms": "{:.2f}", "iqr": "{:.2f}"})
    times = milliseconds(start_stages(options.image, options.num_gaussians), options.runs)
    for name, values in times.items():
        stages.add(name, *spread(values))
    print()
    columns = {"method": "{}", "step ms": "{:.2f}", "iqr": "{:.2f}", "raster ms": "{:.2f}"}
    steps = Table(columns | {"outside": "{:.0%}"})
    for method in SUMS:
        times = milliseconds(step_stages(method, image, options.num_gaussians), options.runs)
        step, iqr = spread(times["step"])
        raster = spread(times["raster"])[0]
        steps.add(method, step, iqr, raster, 1 - raster / step)
    save_tables(options.output, [stages, steps], note)


if __name__ == "__main__":
    main()
