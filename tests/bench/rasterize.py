"""Prints how long it takes to draw Gaussians and to find their gradients.

python tests/bench/rasterize.py [--json OUT] [--quick] [--threads N]

Standard deviations are uniform in 0.85 to 2.55 px, angles uniform. "pairs" are the (Gaussian,
pixel) pairs with a weight of at least 1/255, counted exactly, pixel by pixel, without the kernels.
"exp" is torch.exp over as many floats with as many threads, run in turns with the kernels; "ratio"
is (forward + backward) / exp, by medians. "error" and "local" are both passes as a fit runs them.
"mixture" and "its backward" are of the mixture of the 10 largest, with Gaussians so much smaller
that its pairs, down to where it drops a weight, are those of the sum. "blocks" are a mixture at
scattered points from their blocks alone, with the largest error of shells of a quarter.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.timing import EXP, conditions, exp_of, milliseconds, peak_megabytes, spread
from scenes import random_gaussians

from instantgi.gaussians import Gaussians
from instantgi.render import (
    mixture_at,
    rasterize,
    rasterize_mixture,
    rasterize_reference,
    sum_at,
)
from instantgi.render.blocks import SHELL, cut_into_blocks
from instantgi.render.cuda import SUM_CUTOFF
from instantgi.render.draw import pixels
from instantgi.render.mixture import EPSILON, TOP_K, cutoff_of
from instantgi.render.ops import (
    LOCAL,
    rasterize_error,
    rasterize_error_backward,
    rasterize_sum_backward,
    to_blocks,
)
from instantgi.representations import Mixture

SCALES = (0.85, 2.55)
MIXTURE = ("mixture", "its backward")
BLOCKS = (64, 1024)  # means of a block
DENSITY = 43_000 / (768 * 512)
SIZES = [(64, 64), (256, 256), (512, 768), (1080, 1920), (2160, 3840), (4320, 8192)]


def count_pairs(gaussians: Gaussians, height: int, width: int) -> int:
    reach = 9  # pixels: 3.33 · 2.55, rounded up
    offset = torch.arange(-reach, reach + 1)
    pairs = 0
    for part in range(0, len(gaussians), 20_000):
        some = gaussians[part : part + 20_000].to(torch.float64)
        x, y = (some.means.floor()[:, None].long() + offset[:, None]).unbind(-1)  # [n, 19]
        inside = ((x >= 0) & (x < width))[:, None] & ((y >= 0) & (y < height))[:, :, None]
        l11, l21, l22 = some.cholesky.unbind(-1)
        z1 = (x + 0.5 - some.means[:, :1]) / l11[:, None]
        dy = y + 0.5 - some.means[:, 1:]
        z2 = (dy[:, :, None] - (l21[:, None] * z1)[:, None]) / l22[:, None, None]
        weights = torch.exp(-0.5 * (z1[:, None] ** 2 + z2**2))
        pairs += int((inside & (weights >= 1 / 255)).sum())
    return pairs


def with_pairs_of_the_sum(gaussians: Gaussians) -> Gaussians:
    """A mixture of them reaches the pixels that the sum of the given ones reaches."""
    shrink = math.sqrt(SUM_CUTOFF / cutoff_of(EPSILON))
    return Gaussians(gaussians.means, gaussians.cholesky * shrink, gaussians.colors)


def measure(num: int, height: int, width: int, runs: int) -> dict[str, float]:
    gaussians = random_gaussians(num, height, width, scales=SCALES)
    fields = gaussians.means, gaussians.cholesky, gaussians.colors
    pairs = count_pairs(gaussians, height, width)
    random = torch.Generator().manual_seed(1)
    image = torch.rand(3, height, width, generator=random)
    target = to_blocks(image)
    residual, _ = rasterize_error(*fields, target, height, width, False)
    mixed = with_pairs_of_the_sum(gaussians)
    mixed_fields = mixed.means, mixed.cholesky, mixed.colors
    drawn = *mixed_fields, height, width, TOP_K, EPSILON
    mixture = torch.ops.instantgi.rasterize_mixture(*drawn, True)
    mixture_backward = torch.ops.instantgi.rasterize_mixture_backward
    times = milliseconds(
        {
            EXP: exp_of(pairs),
            "forward": lambda: rasterize(gaussians, height, width),
            "backward": lambda: rasterize_sum_backward(image, *fields, None),
            "error": lambda: rasterize_error(*fields, target, height, width, False),
            "local": lambda: rasterize_error_backward(residual, *fields, height, width, 1.0, LOCAL),
            "mixture": lambda: rasterize_mixture(mixed, height, width),
            "its backward": lambda: mixture_backward(image, *mixture, *mixed_fields, EPSILON),
        },
        runs,
    )
    times["sum"] = [a + b for a, b in zip(times["forward"], times["backward"], strict=True)]
    row: dict[str, float] = {
        "num": num,
        "height": height,
        "width": width,
        "pairs": pairs,
        "runs": runs,
    }
    for name, values in times.items():
        row[name], row[f"{name} iqr"] = spread(values)
    row["ratio"] = row["sum"] / row[EXP]
    row["fit ratio"] = (row["error"] + row["local"]) / row[EXP]
    row["ns per pair"] = 1e6 * row["sum"] / pairs
    return row


def print_rows(title: str, rows: list[dict[str, float]]) -> None:
    columns = ["picture", "N", "M pairs", "forward ms", "backward ms", "sum ms", "IQR", "exp ms"]
    columns += ["IQR", "ratio", "ns/pair", "error ms", "local ms", "ratio"]
    columns += ["mixture ms", "its backward ms"]
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for r in rows:
        cells = [
            f"{r['width']:.0f}x{r['height']:.0f}",
            f"{r['num']:.0f}",
            f"{r['pairs'] / 1e6:.2f}",
        ]
        names = ["forward", "backward", "sum", "sum iqr", EXP, f"{EXP} iqr", "ratio", "ns per pair"]
        cells += [f"{r[name]:.2f}" for name in (*names, "error", "local", "fit ratio", *MIXTURE)]
        print("|", " | ".join(cells), "|", flush=True)


def measure_peak(num: int, height: int, width: int) -> dict[str, float]:
    gaussians = random_gaussians(num, height, width, scales=SCALES)
    fields = gaussians.means, gaussians.cholesky, gaussians.colors
    rasterize(gaussians[:1000], 64, 64)  # the library and its threads
    image = torch.rand(3, height, width)

    def both() -> None:
        rasterize(gaussians, height, width)
        rasterize_sum_backward(image, *fields, None)

    return {"num": num, "height": height, "width": width, "MB": peak_megabytes(both)}


def compare_reference(num: int, height: int, width: int, runs: int) -> dict[str, float]:
    """The definition in plain torch, with several [H, W, N] tensors for its backward."""
    scene = random_gaussians(num, height, width, scales=SCALES)
    gaussians = scene.map(lambda field: field.requires_grad_())
    grad_image = torch.rand(3, height, width)

    def both(draw) -> None:
        draw(gaussians, height, width).backward(grad_image)

    # not in turns: the gigabytes of the reference leave the kernel with cold caches
    times = milliseconds({"kernel": lambda: both(rasterize)}, 25)
    times |= milliseconds({"reference": lambda: both(rasterize_reference)}, runs)
    row = {name: spread(values)[0] for name, values in times.items()}
    row["times faster"] = row["reference"] / row["kernel"]
    return {"num": num, "height": height, "width": width, "runs": runs, **row}


def scattered(num: int) -> tuple[Gaussians, torch.Tensor]:
    deviation = math.sqrt(1024 * 1024 / num)
    scene = random_gaussians(num, 1024, 1024, scales=(0.3 * deviation, 0.7 * deviation))
    return scene, torch.rand(10_000, 2, generator=torch.Generator().manual_seed(2)) * 1024


def measure_points(num: int, runs: int) -> dict[str, float]:
    """10,000 scattered points of a picture of one megapixel, from Gaussians that cover it alike."""
    scene, points = scattered(num)
    times = milliseconds(
        {"sum": lambda: sum_at(scene, points), "mixture": lambda: mixture_at(scene, points)}, runs
    )
    return {"num": num} | {name: median(values) for name, values in times.items()}


def print_points(rows: list[dict[str, float]]) -> None:
    print("\n10,000 scattered points of 1024x1024 pixels\n")
    print("| N | sum ms | mixture ms |\n|---|---|---|")
    for row in rows:
        print(f"| {row['num']} | {row['sum']:.2f} | {row['mixture']:.2f} |", flush=True)


def measure_blocks(num: int, counts: tuple[int, ...], runs: int) -> list[dict[str, float]]:
    """Of the same scene a few points, from all Gaussians and from those of their blocks."""
    scene, points = scattered(num)
    mixture, exact = Mixture(scene), mixture_at(scene, points)
    cut = {most: cut_into_blocks(mixture, 1024, 1024, most) for most in BLOCKS}
    errors = {}
    for most in BLOCKS:
        shells = cut_into_blocks(mixture, 1024, 1024, most, shell=SHELL)
        errors[f"error {most}"] = float((shells.at(points) - exact).abs().max())
    rows = []
    for count in counts:
        few = points[:count]
        functions: dict[str, Callable[[], object]] = {"pixels": partial(pixels, mixture, few)}
        functions |= {f"blocks {most}": partial(cut[most].at, few) for most in BLOCKS}
        times = milliseconds(functions, runs)
        values = {name: median(each) for name, each in times.items()}
        rows.append({"num": num, "points": count} | values | errors)
    return rows


def print_blocks(rows: list[dict[str, float]]) -> None:
    print("\nScattered points of 1024x1024 pixels from blocks of a mixture\n")
    heads = [f"blocks of {most} ms" for most in BLOCKS]
    heads += [f"shells of {most}, largest error" for most in BLOCKS]
    print(f"| N | points | pixels ms | {' | '.join(heads)} |\n{'|---' * (3 + len(heads))}|")
    for row in rows:
        cells = [row["pixels"], *(row[f"blocks {most}"] for most in BLOCKS)]
        texts = [f"{cell:.2f}" for cell in cells] + [f"{row[f'error {m}']:.4f}" for m in BLOCKS]
        print(f"| {row['num']} | {row['points']} | {' | '.join(texts)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", help="also write all numbers here")
    parser.add_argument("--quick", action="store_true", help="small pictures, few runs")
    parser.add_argument("--threads", type=int, help="default: as torch has it")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    runs = 7 if options.quick else 25
    header = conditions()
    print(", ".join(f"{key} {value}" for key, value in header.items()))
    typical = [measure(num, 512, 768, runs) for num in (20_000, 43_000, 70_000)]
    print_rows("A picture of 768x512", typical)
    points = [measure_points(num, runs) for num in (2000, 8000, 30_000, 110_000)]
    print_points(points)
    scenes = (500, 2000) if options.quick else (8000, 110_000)
    blocks = [row for num in scenes for row in measure_blocks(num, (1, 100, 10_000), runs)]
    print_blocks(blocks)
    sizes = SIZES[:3] if options.quick else SIZES
    sweep = [measure(round(h * w * DENSITY), h, w, runs if h * w < 5e6 else 20) for h, w in sizes]
    print_rows("Constant density, from a thumbnail to 8K", sweep)
    peak = measure_peak(*((100_000, 1024, 1024) if options.quick else (1_000_000, 4096, 4096)))
    print(
        f"\nPeak memory of forward and backward with {peak['num']} Gaussians on "
        f"{peak['width']}x{peak['height']}, their pictures included: {peak['MB']:.0f} MB"
    )
    reference = compare_reference(*((500, 128, 128) if options.quick else (2000, 256, 256)), runs=5)
    print(
        f"\nForward and backward of {reference['num']} Gaussians on "
        f"{reference['width']}x{reference['height']}, {reference['runs']} runs: kernel "
        f"{reference['kernel']:.2f} ms, plain torch {reference['reference']:.0f} ms, "
        f"{reference['times faster']:.0f} times faster"
    )
    if options.json:
        results = {"conditions": header, "typical": typical, "points": points, "sweep": sweep}
        results |= {"blocks": blocks, "peak": peak, "reference": reference}
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
