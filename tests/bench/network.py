"""Prints what a network's start costs and gives, next to the start from the picture's gradient.

python tests/bench/network.py [IMAGE] [--checkpoint NAME] [--num-gaussians N] [--runs N]
                               [-o OUT.json]
python tests/bench/network.py --race DIR [--limit K] [-o OUT.json] [--plot OUT.svg]
python tests/bench/network.py --counts DIR [--limit K] [-o OUT.json]
python tests/bench/network.py [IMAGE] --maps OUT.webp

The race: PSNR of fits that stop after so many seconds, everything counted from the picture in
memory on but the loading of the network; every budget is a fit of its own.

Counts: the number of Gaussians that the network itself chooses, next to the bytes of the picture
as lossless WebP; and how PSNR after 50 steps spreads over the pictures, with these numbers and with
their mean for every picture.

Maps: picture, image gradient, map of a finished fit, the network's map, its points and its drawing
(after figure 5 of Instant-GI, 2025).
"""

import argparse
import io
import json
import sys
import time
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.tables import Table, save_tables
from bench.timing import conditions, milliseconds, spread

from data.prepare import TargetRecipe, target_map
from instantgi.fit import fit_image, heuristic_start, solve_colors
from instantgi.fit.network import expected_steps, network_fit, network_start
from instantgi.images import read_image, to_8bit
from instantgi.infer import SOLVE_ITERATIONS
from instantgi.metrics import psnr
from instantgi.models import InstantGI
from instantgi.models.instantgi import mixed_precision
from instantgi.points import make_mesh
from instantgi.points.gradient import gradient_map
from instantgi.render import rasterize

PICTURE = Path(__file__).parents[2] / "assets" / "kodim23.png"
BUDGETS = (0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


def stages(network: InstantGI, image: torch.Tensor, num_gaussians: int) -> dict:
    """Each arrow from the picture to solved colors, as a function of nothing."""
    features, maps = network.encode(image[None])
    mesh = make_mesh(maps[0], 3, num_gaussians)
    attributes = network.fields(features[0], image, mesh)
    gaussians = network.look(attributes, image, mesh)[-1]
    return {
        "encoder and position map": lambda: network.encode(image[None]),
        "points, triangles, ellipses": lambda: make_mesh(maps[0], 3, num_gaussians),
        "fields": lambda: network.fields(features[0], image, mesh),
        f"{len(network.looks)} looks": lambda: network.look(attributes, image, mesh),
        "colors, 10 iterations": lambda: solve_colors(gaussians, image, 10),
        "all of it": lambda: solve_colors(network(image, num_gaussians=num_gaussians), image, 10),
        "heuristic start, 10 iterations": lambda: solve_colors(
            heuristic_start(image, num_gaussians), image, 10
        ),
    }


def race(network: InstantGI, image: torch.Tensor, num_gaussians: int) -> dict[str, list[float]]:
    """PSNR after each of the budgets, from either start."""
    reached: dict[str, list[float]] = {"network": [], "heuristic": []}
    for budget in BUDGETS:
        for name in reached:
            steps = expected_steps(*image.shape[1:], seconds=budget)
            began = time.perf_counter()
            if name == "network":
                start = network_start(network, image, num_gaussians, steps=steps)
            else:
                start = heuristic_start(image, num_gaussians)
            gaussians = solve_colors(start, image, SOLVE_ITERATIONS)
            left = max(0.0, budget - (time.perf_counter() - began))
            method = network_fit(steps) if name == "network" else "instantgi"
            fitted = fit_image(image, gaussians, method=method, seconds=left)
            reached[name].append(psnr(rasterize(fitted, *image.shape[1:]), image))
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("image", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--num-gaussians", type=int, default=43_000)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--race", type=Path, metavar="DIR")
    parser.add_argument("--counts", type=Path, metavar="DIR")
    parser.add_argument("--limit", type=int)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--plot", type=Path, metavar="OUT.svg")
    parser.add_argument("--maps", type=Path, metavar="OUT.webp")
    options = parser.parse_args()
    network = InstantGI.from_pretrained(options.checkpoint)
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()))
    with torch.no_grad():
        if options.race:
            run_race(network, options)
        elif options.counts:
            run_counts(network, options)
        elif options.maps:
            write_maps(network, options)
        else:
            print_stages(network, options)


def print_stages(network: InstantGI, options: argparse.Namespace) -> None:
    image = read_image(options.image)
    note = f"{options.image.name}, {options.num_gaussians} Gaussians, {options.checkpoint}"
    print(note + "\n")
    table = Table({"stage": "{}", "ms": "{:.0f}", "iqr": "{:.0f}"})
    with mixed_precision(image):
        times = milliseconds(stages(network, image, options.num_gaussians), options.runs)
    for name, values in times.items():
        table.add(name, *spread(values))
    save_tables(options.output, [table], note)


def run_race(network: InstantGI, options: argparse.Namespace) -> None:
    paths = sorted(options.race.glob("*.png"))[: options.limit]
    rows = {}
    for path in paths:
        image = read_image(path)
        rows[path.name] = race(network, image, options.num_gaussians)
    print(f"{len(paths)} pictures, {options.num_gaussians} Gaussians, mean PSNR\n")
    print("| seconds | " + " | ".join(f"{budget:g}" for budget in BUDGETS) + " |")
    print("|---" * (len(BUDGETS) + 1) + "|")
    for name in ("network", "heuristic"):
        means = [
            sum(row[name][i] for row in rows.values()) / len(rows) for i in range(len(BUDGETS))
        ]
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in means) + " |")
    save(options.output, {"budgets": BUDGETS, "rows": rows})
    if options.plot:
        plot_race(rows, options.plot)


def plot_race(rows: dict[str, dict[str, list[float]]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, style in (("network", "o-"), ("heuristic", "s--")):
        means = torch.tensor([row[name] for row in rows.values()]).mean(0)
        axes.plot(BUDGETS, means.tolist(), style, label=f"{name} start")
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(BUDGETS, [f"{budget:g}" for budget in BUDGETS])
    axes.set(xlabel="seconds from the picture in memory on", ylabel="PSNR, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def write_maps(network: InstantGI, options: argparse.Namespace) -> None:
    image = read_image(options.image)
    recipe = TargetRecipe()
    prediction = network.predict(image[None], options.num_gaussians)[0]
    fitted = fit_image(
        image, num_gaussians=len(prediction.mesh.triangles), iterations=recipe.iterations
    )
    height, width = image.shape[1:]
    reached = psnr(rasterize(fitted, height, width), image)
    target = target_map(fitted, height, width, reached, recipe)
    columns, rows = prediction.mesh.points.long().unbind(1)
    points = torch.zeros(height, width)
    points[rows.clamp(max=height - 1), columns.clamp(max=width - 1)] = 1
    drawn = rasterize(prediction.gaussians(), height, width)
    planes = [gradient_map(image), target, prediction.position_map]
    # each as bright as its own 99th percentile: it is their shapes that are compared
    planes = [(plane / plane.flatten()[::7].quantile(0.99)).clamp(0, 1) for plane in planes]
    tiles = [image, *(plane.expand(3, -1, -1) for plane in (*planes, points)), drawn.clamp(0, 1)]
    sheet = torch.cat([torch.cat(tiles[:3], 2), torch.cat(tiles[3:], 2)], 1)
    Image.fromarray(to_8bit(sheet).movedim(0, 2).numpy()).save(options.maps, quality=80)


def save(output: Path | None, made: dict) -> None:
    if output:
        text = json.dumps({"conditions": conditions()} | made, indent=1)
        output.write_text(text, encoding="utf-8")


def run_counts(network: InstantGI, options: argparse.Namespace) -> None:
    paths = sorted(options.counts.glob("*.png"))[: options.limit]
    images = [read_image(path) for path in paths]
    chosen = [network(image) for image in images]
    mean = sum(len(gaussians) for gaussians in chosen) // len(chosen)
    same = [network(image, num_gaussians=mean) for image in images]
    rows = []
    for path, image, *starts in zip(paths, images, chosen, same, strict=True):
        levels = []
        for start in starts:
            fitted = fit_image(image, solve_colors(start, image, 10), iterations=50)
            levels.append(psnr(rasterize(fitted, *image.shape[1:]), image))
        counts = [len(start) for start in starts]
        rows.append([path.name, webp_bytes(image), *counts, *levels])
    print(
        "| picture | WebP kB | own number | dB | mean number | dB |\n|---|---:|---:|---:|---:|---:|"
    )
    for name, size, own, common, *levels in rows:
        print(
            f"| {name} | {size / 1e3:.0f} | {own} | {levels[0]:.2f} | {common} | {levels[1]:.2f} |"
        )
    table = torch.tensor([row[1:] for row in rows], dtype=torch.float64)
    r = float(torch.corrcoef(table[:, :2].T)[0, 1])
    own, common = table[:, 3:].std(0).tolist()
    print(f"\nmean own number {mean}; correlation with the bytes r = {r:.3f}; standard deviation")
    print(f"of PSNR after 50 steps {own:.2f} dB with own numbers, {common:.2f} dB with their mean")
    save(options.output, {"rows": rows, "r": r, "deviation": [own, common]})


def webp_bytes(image: torch.Tensor) -> int:
    file = io.BytesIO()
    Image.fromarray(to_8bit(image).movedim(0, 2).numpy()).save(file, "WEBP", lossless=True)
    return file.tell()


if __name__ == "__main__":
    main()
