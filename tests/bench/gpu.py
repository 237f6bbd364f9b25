"""Checks and measures the CUDA kernels on a machine with a GPU and this repository alone.

python tests/bench/gpu.py [--images DIR] [-o results.json] [--quick] [--device cpu]

Builds the CPU kernels if they are missing, runs the tests that are marked `gpu`, then times:
drawing, both passes and whole steps as replayed CUDA graphs (CUDA events, medians), the start of a
fit, and PSNR over wall-clock time on the pictures of DIR. "floor" is the larger of arithmetic over
the rate of fused multiply-adds and bytes over the bandwidth of memory, both of which are measured
first. "mixture" is of the 10 largest, Gaussians so much smaller that its pairs are those of the
sum. `--device cpu --quick` runs the same lines on the CPU, for the script's sake.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from bench.rasterize import count_pairs, with_pairs_of_the_sum
from bench.timing import conditions
from scenes import random_gaussians

from instantgi import native
from instantgi.fit import LocalAdam, fit_image, heuristic_start, solve_colors
from instantgi.fit.network import network_start
from instantgi.images import read_image
from instantgi.metrics import psnr
from instantgi.render import rasterize, rasterize_mixture
from instantgi.render.mixture import EPSILON, TOP_K
from instantgi.render.ops import (
    LOCAL,
    order_by_place,
    rasterize_error,
    rasterize_error_backward,
    to_blocks,
)

ROOT = Path(__file__).parents[2]
SCENES = [(70_000, 512, 768), (43_000, 512, 768), (1_000_000, 4096, 4096), (10**7, 9216, 9216)]
QUICK = [(2_000, 64, 96)]
BUDGETS = (0.1, 0.25, 0.5, 1.0, 2.0)
# arithmetic of one Gaussian at one pixel: offsets 2, (u, v) 3, square 2, power 1, colors 3; on the
# way back the same weight, colors 6, moments 7; a fused multiply-add counts as one
FORWARD, BACKWARD = 11, 21


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="pictures for PSNR over time")
    parser.add_argument("-o", "--output", type=Path, default=Path("results.json"))
    parser.add_argument("--quick", action="store_true", help="small scenes, no tests")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    device = native.choose_device(options.device)
    build_missing_kernels()
    found = conditions() | gpu_conditions(device)
    results: dict = {"conditions": found}
    print("; ".join(f"{name}: {value}" for name, value in found.items()), flush=True)

    def note(name: str, value) -> None:
        """Results are written after each part: a run that ends early leaves what it has."""
        results[name] = value
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"\n{name}\n" + table(value), flush=True)

    if not options.quick:
        note("tests", run_tests())
        note("compute-sanitizer", run_sanitizer())
    note("ceilings", ceilings := measure_ceilings(device))
    note("same bytes", check_same_bytes(device))
    note("picture against the CPU's", check_picture(device, options.quick))
    note("start", time_start(device, options.quick))
    scenes = QUICK if options.quick else SCENES
    note("kernels", [time_scene(device, ceilings, *scene) for scene in scenes])
    if options.images:
        note("PSNR over seconds", race(device, options.images, options.quick))


def build_missing_kernels() -> None:
    if any(native.FOLDER.glob("libinstantgi_*")):
        return
    sys.path.insert(0, str(ROOT / "cuda"))
    import build  # pyright: ignore[reportMissingImports]: cuda/ is no package

    build.build(build.OUTPUT)


def table(value) -> str:
    """Rows of equal keys as Markdown; anything else as it is."""
    rows = value if isinstance(value, list) else [value]
    if not all(isinstance(row, dict) for row in rows):
        return str(value)
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpu_conditions(device: torch.device) -> dict:
    if device.type == "cpu":
        return {"gpu": "none"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "nvrtc": ".".join(map(str, native.nvrtc_version())),
    }


def run_tests() -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([*failed[:40], lines[-1] if lines else done.stderr[-2000:]])


def run_sanitizer() -> str:
    """Accesses outside of memory in the tests of single kernels."""
    if shutil.which("compute-sanitizer") is None:
        return "is not on this machine"
    chosen = "cuda and (dither or described or adan or order or many or solved)"
    command = ["compute-sanitizer", "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q"]
    command += ["-m", "gpu", "-k", chosen, "tests/test_cuda.py"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "took more than 120 s"
    lines = [line for line in done.stdout.splitlines() if "=====" in line or "passed" in line]
    return f"exit code {done.returncode}: " + "; ".join(lines[-4:])


# --- time --------------------------------------------------------------------------------------


def captured(function: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The function as a replayed graph."""
    for _ in range(3):
        function()
    if device.type == "cpu":
        return function
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def milliseconds(function: Callable[[], object], device: torch.device, seconds=0.5) -> float:
    """Median over runs of about so many seconds together."""
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 20 or time.perf_counter() - began < seconds:
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            function()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
        else:
            start = time.perf_counter()
            function()
            times.append(1000 * (time.perf_counter() - start))
    return median(times)


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """GB/s of a copy, bytes read and written; TFLOP/s of float32 without tensor cores."""
    size = 2**28 if device.type == "cuda" else 2**24
    source = torch.rand(size, device=device)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), device)
    side = 4096 if device.type == "cuda" else 512
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = (torch.rand(side, side, device=device) for _ in range(2))
    product = milliseconds(lambda: a @ b, device)
    return {"GB/s": 8 * size / copy / 1e6, "TFLOP/s": 2 * side**3 / product / 1e9}


def time_scene(device: torch.device, ceilings: dict, num: int, height: int, width: int) -> dict:
    """Drawing, both passes and a step of a fit, in milliseconds and over their floors."""
    on_cpu = random_gaussians(num, height, width)
    pairs = count_pairs(on_cpu[: min(num, 10**6)], height, width) * max(1, num / 10**6)
    gaussians = on_cpu.to(device)
    scene = (gaussians.means, gaussians.cholesky, gaussians.colors)
    image = torch.rand(3, height, width, device=device)
    target = to_blocks(image)
    order = order_by_place(gaussians.means, height, width)
    residual = rasterize_error(*scene, target, height, width, False, order)[0]
    mixed = with_pairs_of_the_sum(gaussians)
    mixed_scene = (mixed.means, mixed.cholesky, mixed.colors)
    drawn = *mixed_scene, height, width, TOP_K, EPSILON
    mixture = torch.ops.instantgi.rasterize_mixture(*drawn, True)
    mixture_backward = torch.ops.instantgi.rasterize_mixture_backward
    fitter = LocalAdam(relocations=())
    fitter.start(image, gaussians, num, 0)
    fitter.schedule.set(1e-9, 1e-9, 0.9, 0.99, 1.0, 1.0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def backward():
        rasterize_error_backward(residual, *scene, height, width, 1.0, LOCAL, order)

    times = {
        name: milliseconds(captured(function, device), device)
        for name, function in {
            "draw": lambda: rasterize(gaussians, height, width),
            "forward": lambda: rasterize_error(*scene, target, height, width, False, order),
            "backward": backward,
            "step": fitter._move,
            "mixture": lambda: rasterize_mixture(mixed, height, width),
            "mixture backward": lambda: mixture_backward(image, *mixture, *mixed_scene, EPSILON),
        }.items()
    }
    # the cheapest that a step can be: parameters, moments and gradients once, the picture thrice
    moved = num * 4 * (8 * 2 + 16 * 2 + 8 * 2) + image.numel() * 4 * 3
    flops = 2 * pairs * (FORWARD + BACKWARD)
    floor = 1000 * max(flops / ceilings["TFLOP/s"] / 1e12, moved / ceilings["GB/s"] / 1e9)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
    row = {"Gaussians": num, "size": f"{width}x{height}", "million pairs": pairs / 1e6}
    row |= {f"{name} ms": value for name, value in times.items()}
    row |= {"draws/s": 1000 / times["draw"], "steps/s": 1000 / times["step"]}
    return row | {"step over floor": times["step"] / floor, "GB": peak}


def time_start(device: torch.device, quick: bool) -> dict[str, float]:
    """Milliseconds from a picture to solved colors, without and with the network."""
    from instantgi.models import InstantGI

    path = ROOT / "assets" / "kodim23.png"
    image = read_image(path).to(device)
    image = image[:, :64, :96].contiguous() if quick else image
    count = round(0.11 * image[0].numel())
    network = InstantGI.from_pretrained("tiny").to(device)
    start, made = heuristic_start(image, count), network_start(network, image, count)
    parts = {
        "heuristic": lambda: heuristic_start(image, count),
        "network": lambda: network_start(network, image, count),
        "colors, heuristic": lambda: solve_colors(start, image, 10),
        "colors, network": lambda: solve_colors(made, image, 10),
    }
    return {f"{name} ms": milliseconds(part, device) for name, part in parts.items()}


# --- what comes out ----------------------------------------------------------------------------


def check_same_bytes(device: torch.device) -> str:
    image = read_image(ROOT / "assets" / "kodim23.png")[:, :160, :240].contiguous().to(device)
    first, second = (fit_image(image, num_gaussians=3000, iterations=150) for _ in range(2))
    same = all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("means", "cholesky", "colors")
    )
    return "a fit gives the same bytes twice" if same else "A FIT DIFFERS BETWEEN TWO RUNS"


def check_picture(device: torch.device, quick: bool) -> dict[str, float]:
    """How far the picture is from the CPU's, relative, outside of what the cut-off decides."""
    num, height, width = QUICK[0] if quick else SCENES[0]
    gaussians = random_gaussians(num, height, width)
    expected = rasterize(gaussians, height, width)
    actual = rasterize(gaussians.to(device), height, width).cpu()
    relative = (actual - expected).abs() / expected.abs().clamp_min(1e-3)
    off = (actual - expected).abs() > 1 / 600  # a term more or less: at least 1/255 of a color
    return {
        "median": float(relative.median()),
        "99.9 %": float(relative.flatten()[: 10**7].quantile(0.999)),
        "share on the cut-off": float(off.float().mean()),
    }


def race(device: torch.device, folder: Path, quick: bool) -> list[dict]:
    """Mean PSNR of the 8-bit picture after so many seconds from the picture in memory on."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".webp"))
    images = [read_image(path).to(device) for path in paths[: 1 if quick else None]]
    rows = []
    for count in (43_000, 50_000):
        fit_image(images[0], num_gaussians=count, iterations=30)  # compiles
        for budget in BUDGETS[:2] if quick else BUDGETS:
            reached, steps = [], []
            for image in images:
                began = time.perf_counter()
                start = solve_colors(heuristic_start(image, count), image, 10)
                left = max(0.0, budget - (time.perf_counter() - began))
                seen: list[int] = []
                fitted = fit_image(
                    image,
                    start,
                    seconds=left,
                    report_every=25,
                    on_progress=lambda now, seen=seen: seen.append(now.iteration),
                )
                reached.append(psnr(rasterize(fitted, *image.shape[1:]), image))
                steps.append(seen[-1] if seen else 0)
            rows.append(
                {
                    "Gaussians": count,
                    "seconds": budget,
                    "pictures": len(images),
                    "dB": mean(reached),
                    "steps": round(mean(steps)),
                }
            )
    return rows


if __name__ == "__main__":
    main()
