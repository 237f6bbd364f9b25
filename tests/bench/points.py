"""Prints how long it takes to go from a position map to triangles and ellipses.

python tests/bench/points.py [--threads 1] [--quick] [-o OUT.json]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.spatial import Delaunay

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.tables import Table, save_tables
from bench.timing import conditions, spread

from instantgi.points import (
    add_border_points,
    dither,
    dither_map,
    fit_ellipses,
    fit_published_ellipses,
    pool,
    scale_map,
    triangulate,
)

MAP_SIZES = [(256, 256), (512, 768), (1024, 1024), (2160, 3840)]
NUM_POINTS = [10_000, 40_000, 300_000, 1_000_000]


def smooth_map(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Like the position map of a photograph: log-normal, smooth over some 30 pixels, positive."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, height // 30 + 4, width // 30 + 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0, 0]
    return (1.3 * fine).exp()


def dithered_points(num_points: int, k: int = 3) -> torch.Tensor:
    """About num_points points in a square picture, half as many as it has cells."""
    side = round((2 * num_points) ** 0.5 * k)
    return dither(scale_map(smooth_map(side, side), num_points, k), k)


COLUMNS = {"step": "{}", "size": "{}", "median ms": "{:.2f}", "IQR ms": "{:.2f}", "runs": "{}"}
COLUMNS |= {"times SciPy": "{:.1f}"}


def measure(function: Callable[[], object], runs: int) -> tuple[float, float]:
    """Median and interquartile range in milliseconds."""
    function()  # warm up
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return spread(times)


def bench_maps(table: Table, runs: int) -> None:
    for height, width in MAP_SIZES:
        position_map = smooth_map(height, width)
        scaled = scale_map(position_map, height * width // 18, 3)
        cells = position_map / position_map.max()
        points = dither(scaled, 3)
        num = len(points)
        size = f"{width}x{height}"
        steps = {
            "dither_map, k = 1": lambda cells=cells: dither_map(cells),
            "pool, k = 3": lambda scaled=scaled: pool(scaled, 3),
            "scale_map, k = 3": lambda m=position_map, n=num: scale_map(m, n, 3),
            "dither, k = 3": lambda scaled=scaled: dither(scaled, 3),
            "add_border_points": lambda p=points, h=height, w=width: add_border_points(p, h, w),
        }
        for step, function in steps.items():
            table.add(step, size, *measure(function, runs), runs, None)


def bench_points(table: Table, runs: int, sizes: list[int]) -> None:
    for num_points in sizes:
        points = dithered_points(num_points)
        triangles, _ = triangulate(points)
        size = f"{len(points)} points"
        ours = measure(lambda p=points: triangulate(p), runs)
        table.add("triangulate", size, *ours, runs, None)
        # Qhull takes many seconds for a million points
        rival_runs = runs if num_points <= 40_000 else 3
        array = points.double().numpy()
        rival = measure(lambda a=array: Delaunay(a), rival_runs)
        table.add("scipy Delaunay", size, *rival, rival_runs, rival[0] / ours[0])
        for fit in (fit_ellipses, fit_published_ellipses):
            times = measure(lambda f=fit, p=points, t=triangles: f(p, t), runs)
            table.add(fit.__name__, size, *times, runs, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="only up to 40k points")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()) + "\n")
    table = Table(COLUMNS)
    bench_maps(table, runs=20)
    bench_points(table, runs=20, sizes=NUM_POINTS[:2] if arguments.quick else NUM_POINTS)
    save_tables(arguments.output, [table])


if __name__ == "__main__":
    main()
