"""Checks and measures the CUDA kernels on a machine with a GPU and this repository alone.

python tests/bench/gpu.py [--images DIR] [--all] [-o results.json] [--commit NAME]
                          [--only PART ...] [--seconds 460] [--quick] [--device cpu]

Builds the CPU kernels if they are missing. Each part is a process of its own, because a wrong
access ends all CUDA work of a process, and has a time limit; one that fails leaves {"error": …}
where its numbers would be. Numbers come first: compilation, the ceilings of the card, drawing, both
passes and whole steps as replayed CUDA graphs (CUDA events, medians), fits, PSNR over wall-clock
time on at most 8 pictures of DIR (default: assets); then the tests that are marked `gpu` and
compute-sanitizer. results.json is written anew after every part, a table is printed at the end.

"floor" is the larger of arithmetic over the rate of fused multiply-adds and bytes over the
bandwidth of memory, both of which are measured first. "mixture" is of the 10 largest, Gaussians so
much smaller that its pairs are those of the sum. `--device cpu --quick` runs the same lines on the
CPU with tiny pictures, for the script's sake.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from bench.rasterize import count_pairs, with_pairs_of_the_sum
from bench.timing import conditions
from scenes import random_gaussians
from torch import Tensor

from instantgi import native
from instantgi.fit import METHODS, LocalAdam, fit_image, heuristic_start, solve_colors
from instantgi.fit.network import network_start
from instantgi.gaussians import Gaussians
from instantgi.images import read_image
from instantgi.metrics import psnr
from instantgi.render import mixture_at, rasterize, rasterize_mixture, sum_at
from instantgi.render.mixture import EPSILON, TOP_K
from instantgi.render.ops import (
    LOCAL,
    order_by_place,
    rasterize_error,
    rasterize_error_backward,
    to_blocks,
)

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "assets" / "kodim23.png"
SCENES = [(70_000, 512, 768), (43_000, 512, 768), (1_000_000, 4096, 4096), (10**7, 9216, 9216)]
QUICK = (700, 64, 96)
COUNTED = 100_000  # Gaussians whose pairs are counted; more are taken to be like them
BUDGETS = (0.1, 0.25, 0.5, 1.0, 2.0)
FITS = ("instantgi", "gaussianimage", "gaussianimage-rs", "lig", "imagegs", "sgi")
# arithmetic of one Gaussian at one pixel: offsets 2, (u, v) 3, square 2, power 1, colors 3; on the
# way back the same weight, colors 6, moments 7; a fused multiply-add counts as one
FORWARD, BACKWARD = 11, 21
TESTS = ("cuda", "rasterize", "mixture", "gaussians", "similarity")
SANITIZER = {"memcheck": 70, "racecheck": 40, "synccheck": 40}  # seconds


class Options(NamedTuple):
    device: torch.device
    quick: bool
    pictures: tuple[Path, ...]


def main() -> None:
    options = parse()
    device = native.choose_device(options.device)
    if options.part:
        pictures = pictures_in(options.images, None if options.all else 8)
        made = PARTS[options.part](Options(device, options.quick, pictures))
        options.output.write_text(json.dumps(made), encoding="utf-8")
        return
    build_missing_kernels()
    found = conditions(device) | gpu_conditions(device)
    if options.commit:
        found["commit"] = options.commit
    results: dict[str, Any] = {"conditions": found}
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as cache:
        for name, limit in parts(options).items():
            began = time.monotonic()
            results[name] = run_part(name, min(limit, end - began), cache)
            options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    for name, value in results.items():
        print(f"\n{name}\n\n" + table(value))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, default=PICTURE.parent, help="for PSNR over time")
    parser.add_argument("--all", action="store_true", help="all pictures, not the first 8")
    parser.add_argument("-o", "--output", type=Path, default=Path("results.json"))
    parser.add_argument("--commit", help="where there is no git")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, *commands()], metavar="PART")
    parser.add_argument("--seconds", type=float, default=460, help="for all parts together")
    parser.add_argument("--quick", action="store_true", help="tiny pictures, no tests")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # in this process
    return parser.parse_args()


# --- parts and their processes -----------------------------------------------------------------


def parts(options: argparse.Namespace) -> dict[str, float]:
    """Those that run, each with the most seconds that it may take."""
    limits = dict.fromkeys(PARTS, 60.0) | {"compile": 120.0, "PSNR over seconds": 150.0}
    if not options.quick:
        limits |= {"tests": 150.0, **SANITIZER}
    chosen = options.only or limits
    return {name: limits.get(name, 60.0) for name in chosen}


def run_part(name: str, seconds: float, cache: str) -> Any:
    """What the part's process found, or {"error": …}."""
    if seconds < 5:
        return {"error": "no time was left"}
    environment = os.environ | {"INSTANTGI_CACHE": cache}
    if name not in PARTS:
        command, more = commands()[name]
        if shutil.which(command[0]) is None:
            return {"error": f"{command[0]} is not on this machine"}
        code, text = run(command, seconds, environment | more)
        return said(code, text)
    path = Path(cache) / "part.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--part", name, "-o", str(path)]
    code, text = run(command, seconds, environment)
    if code == 0:
        return json.loads(path.read_text(encoding="utf-8"))
    return {"error": f"exit code {code}: {text.strip()[-2000:]}" if code is not None else text}


def run(command: list[str], seconds: float, environment: dict[str, str]) -> tuple[int | None, str]:
    """Exit code and all output; no code where time ran out, and nothing of it goes on."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=Path.cwd(),
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.wait()
            code = None
        output.seek(0)
        text = output.read()
    return code, text if code is not None else f"took more than {seconds:.0f} s: {text[-500:]}"


def commands() -> dict[str, tuple[list[str], dict[str, str]]]:
    """Programs that check: their lines and what they want in the environment."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    pytest += ["-o", "addopts=--strict-markers", f"--rootdir={ROOT}"]  # no plugin but pytest
    sanitizer = find_sanitizer()
    checked = [*pytest, str(ROOT / "tests/test_cuda.py")]
    found = {"tests": ([*pytest, *(str(ROOT / f"tests/test_{name}.py") for name in TESTS)], {})}
    for tool in SANITIZER:
        # memory that torch keeps for later would hide an access behind the end of a tensor
        more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
        line = [sanitizer, f"--tool={tool}", "--error-exitcode=9", "--target-processes=all"]
        found[tool] = ([*line, *checked], more)
    return found


def find_sanitizer() -> str:
    """With the CUDA toolkit it is often not on the path."""
    folders = sorted(Path("/usr/local").glob("cuda*/bin"), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    return shutil.which("compute-sanitizer", path=path) or "compute-sanitizer"


def said(code: int | None, text: str) -> dict[str, Any]:
    """Of a program that checks: what failed, and its last line."""
    lines = text.strip().splitlines()
    marks = ("FAILED", "ERROR", "========= ERROR SUMMARY", "========= RACECHECK SUMMARY")
    failed = [line for line in lines if line.startswith(marks)][:40]
    summary = [line for line in lines if " passed" in line or " failed" in line][-1:]
    result: dict[str, Any] = {"exit code": code, "said": "; ".join([*failed, *summary])}
    return result if code == 0 else {"error": text[-4000:], **result}


def build_missing_kernels() -> None:
    if any(native.FOLDER.glob("libinstantgi_*")):
        return
    sys.path.insert(0, str(ROOT / "cuda"))
    import build  # pyright: ignore[reportMissingImports]: cuda/ is no package

    build.build(build.OUTPUT)


def pictures_in(folder: Path, most: int | None) -> tuple[Path, ...]:
    paths = (path for path in folder.iterdir() if path.suffix in (".png", ".webp"))
    return tuple(sorted(paths)[:most])


def table(value: Any) -> str:
    """Rows as Markdown, each with the columns of the first; anything else as it is."""
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(row, dict) for row in rows):
        return str(value)
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpu_conditions(device: torch.device) -> dict[str, str | int | None]:
    if device.type == "cpu":
        return {"gpu": "none"}
    return {
        "multiprocessors": torch.cuda.get_device_properties(device).multi_processor_count,
        "cuda": torch.version.cuda,
        "nvrtc": ".".join(map(str, native.nvrtc_version())),
    }


# --- time --------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def captured(function: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The function as a replayed graph."""
    for _ in range(3):
        function()
    if device.type == "cpu":
        return function
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def milliseconds(
    function: Callable[[], object], device: torch.device, quick: bool = False
) -> float:
    """Median over runs of about half a second together."""
    function()
    synchronize(device)
    least, seconds = (2, 0.0) if quick else (20, 0.5)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < least or time.perf_counter() - began < seconds:
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


def wall_milliseconds(
    function: Callable[[], object], device: torch.device, quick: bool = False
) -> float:
    """As `milliseconds`, on the clock of the host: what waits between launches counts."""
    times: list[float] = []
    for _ in range(2 if quick else 20):
        synchronize(device)
        began = time.perf_counter()
        function()
        synchronize(device)
        times.append(1000 * (time.perf_counter() - began))
    return median(times[1:])  # the first one compiles


def measure_compilation(options: Options) -> list[dict]:
    """Seconds of each source, for the GPU that is there; later parts find them in the cache."""
    on_gpu = options.device.type == "cuda"
    capability = torch.cuda.get_device_capability(options.device) if on_gpu else (9, 0)
    sources = sorted((ROOT / "cuda").glob("*_cuda.cu"))
    rows = []
    for source in sources[:1] if options.quick else sources:
        began = time.perf_counter()
        op = source.name.removesuffix("_cuda.cu")
        code = native.cubin(op, "float", f"sm_{capability[0]}{capability[1]}")
        seconds = time.perf_counter() - began
        rows.append({"source": source.name, "compile s": seconds, "kB": len(code) / 1000})
    return rows


def measure_ceilings(options: Options) -> dict[str, float]:
    """GB/s of a copy, bytes read and written; TFLOP/s of float32 without tensor cores."""
    device, large = options.device, options.device.type == "cuda" and not options.quick
    source = torch.rand(2**28 if large else 2**18, device=device)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), device, options.quick)
    side = 4096 if large else 128
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = (torch.rand(side, side, device=device) for _ in range(2))
    product = milliseconds(lambda: a @ b, device, options.quick)
    return {"GB/s": 8 * len(source) / copy / 1e6, "TFLOP/s": 2 * side**3 / product / 1e9}


def measure_scene(options: Options, num: int, height: int, width: int) -> dict[str, Any]:
    """Drawing, both passes and a step of a fit, in milliseconds and over their floors."""
    device, quick = options.device, options.quick
    num, height, width = QUICK if quick else (num, height, width)
    ceilings = measure_ceilings(options)
    on_cpu = random_gaussians(num, height, width)
    counted = min(num, COUNTED)
    pairs = count_pairs(on_cpu[:counted], height, width) * num / counted
    gaussians = on_cpu.to(device)
    image = torch.rand(3, height, width, device=device)

    def floor(operations: int, numbers: int) -> float:
        """Milliseconds."""
        arithmetic = 2 * pairs * operations / ceilings["TFLOP/s"] / 1e12
        return 1000 * max(arithmetic, 4 * numbers / ceilings["GB/s"] / 1e9)

    row: dict[str, Any] = {"Gaussians": num, "size": f"{width}x{height}"}
    row |= {"million pairs": pairs / 1e6}
    step, gigabytes = time_step(options, gaussians, image)
    times = {"step": step} | time_passes(options, gaussians, image)
    row |= {f"{name} ms": value for name, value in times.items()}
    row |= {"draws/s": 1000 / times["draw"], "steps/s": 1000 / times["step"]}
    # at the least, of 8 parameters each: forward reads them, the picture once; a step also moves
    # 16 moments, 8 gradients both ways, and the picture thrice
    moved = num * (8 * 2 + 16 * 2 + 8 * 2) + image.numel() * 3
    row["draw over floor"] = times["draw"] / floor(FORWARD, num * 8 + image.numel())
    row["forward over floor"] = times["forward"] / floor(FORWARD, num * 8 + image.numel() * 2)
    row["step over floor"] = times["step"] / floor(FORWARD + BACKWARD, moved)
    return row | {"GB of a step": gigabytes, "GB of all": gigabytes_peak(device)}


def gigabytes_peak(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def time_step(options: Options, gaussians: Gaussians, image: Tensor) -> tuple[float, float | None]:
    """Milliseconds of a step, and the most GB that are in use with nothing else there."""
    device = options.device
    fitter = LocalAdam(relocations=())
    fitter.start(image, gaussians, len(gaussians), 0)
    fitter.schedule.set(1e-9, 1e-9, 0.9, 0.99, 1.0, 1.0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return milliseconds(captured(fitter._move, device), device, options.quick), gigabytes_peak(
        device
    )


def time_passes(options: Options, gaussians: Gaussians, image: Tensor) -> dict[str, float]:
    height, width = image.shape[1:]
    scene = (gaussians.means, gaussians.cholesky, gaussians.colors)
    target, order = to_blocks(image), order_by_place(gaussians.means, height, width)
    residual = rasterize_error(*scene, target, height, width, False, order)[0]

    def backward():
        rasterize_error_backward(residual, *scene, height, width, 1.0, LOCAL, order)

    functions = {
        "draw": lambda: rasterize(gaussians, height, width),
        "forward": lambda: rasterize_error(*scene, target, height, width, False, order),
        "backward": backward,
    }
    return {
        name: milliseconds(captured(function, options.device), options.device, options.quick)
        for name, function in functions.items()
    }


def measure_mixture(options: Options, num: int, height: int, width: int) -> dict[str, Any]:
    """The mixture, and values of the sum and of the mixture at as many points as Gaussians."""
    device, quick = options.device, options.quick
    num, height, width = QUICK if quick else (num, height, width)
    gaussians = random_gaussians(num, height, width).to(device)
    image, points = torch.rand(3, height, width, device=device), torch.rand(num, 2, device=device)
    points *= points.new_tensor([width, height])
    mixed = with_pairs_of_the_sum(gaussians)
    scene = (mixed.means, mixed.cholesky, mixed.colors)
    mixture = torch.ops.instantgi.rasterize_mixture(*scene, height, width, TOP_K, EPSILON, True)
    mixture_backward = torch.ops.instantgi.rasterize_mixture_backward

    def backward():
        mixture_backward(image, *mixture, *scene, EPSILON)

    drawn = captured(lambda: rasterize_mixture(mixed, height, width), device)
    return {
        "Gaussians": num,
        "size": f"{width}x{height}",
        "mixture ms": milliseconds(drawn, device, quick),
        "mixture backward ms": milliseconds(captured(backward, device), device, quick),
        "sum at points ms": milliseconds(lambda: sum_at(gaussians, points), device, quick),
        "mixture at points ms": milliseconds(lambda: mixture_at(mixed, points), device, quick),
        "GB": gigabytes_peak(device),
    }


def picture(options: Options) -> Tensor:
    image = read_image(PICTURE).to(options.device)
    return image[:, : QUICK[1], : QUICK[2]].contiguous() if options.quick else image


def measure_start(options: Options) -> dict[str, float]:
    """From a picture to solved colors, without and with the network."""
    from instantgi.models import InstantGI

    image = picture(options)
    count = round(0.11 * image[0].numel())
    network = InstantGI.from_pretrained("tiny").to(options.device)
    start, made = heuristic_start(image, count), network_start(network, image, count)
    functions = {
        "start and 10 color iterations": lambda: solve_colors(
            heuristic_start(image, count), image, 10
        ),
        "heuristic": lambda: heuristic_start(image, count),
        "colors, heuristic": lambda: solve_colors(start, image, 10),
        "network": lambda: network_start(network, image, count),
        "colors, network": lambda: solve_colors(made, image, 10),
    }
    return {
        f"{name} ms": wall_milliseconds(function, options.device, options.quick)
        for name, function in functions.items()
    }


# --- what comes out ----------------------------------------------------------------------------


def check_same_bytes(options: Options) -> dict[str, bool]:
    """Whether two fits with one seed are equal."""
    image = picture(options)[:, :160, :240].contiguous()
    num, iterations = (300, 20) if options.quick else (3000, 150)
    fits = [fit_image(image, num_gaussians=num, iterations=iterations) for _ in range(2)]
    first, second = ((each.means, each.cholesky, each.colors) for each in fits)
    return {"a fit is the same twice": all(map(torch.equal, first, second))}


def check_picture(options: Options) -> dict[str, float]:
    """How far pictures are from each other, relative to each value, away from the cut-off."""
    num, height, width = QUICK if options.quick else SCENES[0]
    gaussians = random_gaussians(num, height, width)
    made = rasterize(gaussians.to(options.device), height, width).cpu().double()
    on_cpu = rasterize(gaussians, height, width).double()
    exact = rasterize(gaussians.to(torch.float64), height, width)
    keep = ~near_cutoff(gaussians, height, width)

    def largest(one: Tensor, other: Tensor) -> float:
        # a smaller value than one step of 8 bits has no term at all
        return float(((one - other).abs() / other.abs().clamp_min(1 / 255))[:, keep].max())

    return {
        "GPU and CPU": largest(made, on_cpu),
        "GPU and float64": largest(made, exact),
        "CPU and float64": largest(on_cpu, exact),
        "share on the cut-off": 1 - float(keep.double().mean()),
    }


def near_cutoff(gaussians: Gaussians, height: int, width: int, rtol: float = 3e-5) -> Tensor:
    """`scenes.on_cutoff` of many Gaussians that reach no further than 9 pixels."""
    marked = torch.zeros(height, width, dtype=torch.bool)
    offset = torch.arange(-9, 10)
    for part in range(0, len(gaussians), 20_000):
        some = gaussians[part : part + 20_000].to(torch.float64)
        x, y = (some.means.floor()[:, None].long() + offset[:, None]).unbind(-1)  # [n, 19]
        l11, l21, l22 = some.cholesky.unbind(-1)
        z1 = ((x + 0.5 - some.means[:, :1]) / l11[:, None])[:, None]  # [n, 1, 19]
        z2 = ((y + 0.5 - some.means[:, 1:])[:, :, None] - l21[:, None, None] * z1) / l22[
            :, None, None
        ]
        near = (0.5 * (z1**2 + z2**2) - math.log(255)).abs() < rtol  # [n, 19, 19]
        n, row, column = near.nonzero().unbind(-1)
        at_y, at_x = y[n, row], x[n, column]
        inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
        marked[at_y[inside], at_x[inside]] = True
    return marked


def measure_fit(options: Options, method: str) -> dict[str, Any]:
    """Steps of a second, without the start, and what they reach."""
    image = picture(options)
    count = round(0.11 * image[0].numel())
    every, steps = (1, 3) if options.quick else (40, 120)
    seen: list[tuple[int, float, float]] = []
    began = time.perf_counter()
    fit_image(
        image,
        method=METHODS[method](),
        num_gaussians=count,
        iterations=steps,
        report_every=every,
        on_progress=lambda now: seen.append((now.iteration, now.seconds, now.psnr)),
    )
    synchronize(options.device)
    whole = time.perf_counter() - began
    (first, start, _), (last, end, reached) = seen[0], seen[-1]
    rate = (last - first) / (end - start)
    return {"steps/s": rate, "s with start": whole, "steps": steps, "dB": reached}


def race(options: Options) -> list[dict]:
    """Mean PSNR of the 8-bit picture after so many seconds from the picture in memory on.

    The clock runs from the decoded picture in main memory to the Gaussians on the device: the copy,
    the start, the colors, `fitter.start`, the steps. How long `fitter.start` takes is measured on
    the first picture, because the loop's own clock begins after it; "s" is what all took together.
    """
    images = [read_image(path) for path in options.pictures[: 1 if options.quick else None]]
    if options.quick:
        images = [image[:, : QUICK[1], : QUICK[2]].contiguous() for image in images]
    rows = []
    for count in QUICK[:1] if options.quick else (43_000, 50_000):
        fit_for(images[0], count, 0.2, 0.0, options.device)  # compiles
        prepared = time_of_start(images[0], count, options.device)
        for budget in BUDGETS[:1] if options.quick else BUDGETS:
            fits = [fit_for(image, count, budget, prepared, options.device) for image in images]
            decibels, steps, seconds = (mean(values) for values in zip(*fits, strict=True))
            row = {"Gaussians": count, "seconds": budget, "pictures": len(images), "dB": decibels}
            rows.append(row | {"s": seconds, "steps": round(steps)})
    return rows


def time_of_start(image: Tensor, count: int, device: torch.device) -> float:
    """Seconds of `LocalAdam.start` with a start that is given."""
    image = image.to(device)
    start = heuristic_start(image, count)

    def prepare():
        LocalAdam().start(image, start, count, 0)

    return wall_milliseconds(prepare, device, quick=True) / 1000


def fit_for(
    image: Tensor, count: int, budget: float, prepared: float, device: torch.device
) -> tuple[float, int, float]:
    """PSNR, steps, and the seconds that passed."""
    synchronize(device)
    began, steps = time.perf_counter(), [0]
    image = image.to(device)
    start = solve_colors(heuristic_start(image, count), image, 10)
    synchronize(device)
    left = max(0.0, budget - (time.perf_counter() - began) - prepared)
    fitted = fit_image(
        image,
        start,
        seconds=left,
        report_every=25,
        on_progress=lambda now: steps.append(now.iteration),
    )
    synchronize(device)
    seconds = time.perf_counter() - began
    return psnr(rasterize(fitted, *image.shape[1:]), image), steps[-1], seconds


PARTS: dict[str, Callable[[Options], Any]] = {
    "compile": measure_compilation,
    "ceilings": measure_ceilings,
    "same bytes": check_same_bytes,
    "largest difference": check_picture,
    "start": measure_start,
    **{
        f"kernels {num} {width}x{height}": (
            lambda options, scene=(num, height, width): measure_scene(options, *scene)
        )
        for num, height, width in SCENES
    },
    "PSNR over seconds": race,
    **{
        f"mixture {num} {width}x{height}": (
            lambda options, scene=(num, height, width): measure_mixture(options, *scene)
        )
        for num, height, width in SCENES[:3:2]
    },
    **{
        f"fit {method}": (lambda options, method=method: measure_fit(options, method))
        for method in FITS
    },
}


if __name__ == "__main__":
    main()
