"""Prints how long it takes to go from a position map to triangles and ellipses.

python tests/bench/points.py [--threads 1] [--quick]
"""

import argparse
import subprocess
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch
from scipy.spatial import Delaunay

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


def measure(function: Callable[[], object], runs: int) -> float:
    """Prints median and interquartile range in milliseconds, and returns the median."""
    function()  # warm up
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    low, _, high = quantiles(times, n=4)
    print(f" {median(times):9.2f} | {high - low:8.2f} | {runs:4d} |", end="")
    return median(times)


def row(step: str, size: str, function: Callable[[], object], runs: int) -> float:
    print(f"| {step:<22} | {size:>14} |", end="")
    return measure(function, runs)


def print_header() -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    print(
        f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"commit {commit or 'none'}\n"
    )
    print("| step                   |           size | median ms |   IQR ms | runs | times SciPy |")
    print("|---|---|---|---|---|---|")


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return torch.backends.cpu.get_cpu_capability()


def bench_maps(runs: int) -> None:
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
            row(step, size, function, runs)
            print("           – |")


def bench_points(runs: int, sizes: list[int]) -> None:
    for num_points in sizes:
        points = dithered_points(num_points)
        triangles, _ = triangulate(points)
        size = f"{len(points)} points"
        ours = row("triangulate", size, lambda p=points: triangulate(p), runs)
        print("           – |")
        # Qhull takes many seconds for a million points
        rival_runs = runs if num_points <= 40_000 else 3
        array = points.double().numpy()
        rival = row("scipy Delaunay", size, lambda a=array: Delaunay(a), rival_runs)
        print(f" {rival / ours:11.1f} |")
        for fit in (fit_ellipses, fit_published_ellipses):
            row(fit.__name__, size, lambda f=fit, p=points, t=triangles: f(p, t), runs)
            print("           – |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="only up to 40k points")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_header()
    bench_maps(runs=20)
    bench_points(runs=20, sizes=NUM_POINTS[:2] if arguments.quick else NUM_POINTS)


if __name__ == "__main__":
    main()
