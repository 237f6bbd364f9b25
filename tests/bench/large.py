"""Prints the seconds and the resident memory of every stage of a fit to a large picture.

python tests/bench/large.py FOLDER [--megapixels 50] [--num-gaussians N] [--steps 50 or --seconds T]
                            [--method instantgi] [--suffix .png] [--json OUT]

The picture is a mosaic of those in FOLDER, cut or mirrored to fill it: the same for the same files.
Each stage is one line: how long it took, what the process held after it, and the most that it held
meanwhile (Linux; shared libraries included). A new process runs them, so that nothing but the
stages counts. Steps are timed from the end of the fit's start, whose time is on its line.
"""

import argparse
import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.timing import conditions, resident_megabytes
from PIL import Image, ImageOps

from instantgi.bench import pictures_in
from instantgi.fit import METHODS, Progress, fit_image, heuristic_start, solve_colors
from instantgi.gaussians import Gaussians
from instantgi.images import read_image, to_8bit
from instantgi.metrics import ms_ssim, psnr
from instantgi.render import rasterize
from instantgi.render.draw import draw

DENSITY = 0.07  # Gaussians per pixel: 3.5 million at 50 megapixels
SIDE = 64  # pixels; the height is a multiple of it, and 3/4 of the width
MARKS = (1, 5, 10, 20, 50, 100, 200, 500, 1000)  # steps whose PSNR is printed


def mosaic(paths: Sequence[Path], height: int, width: int) -> Image.Image:
    """The pictures side by side in two rows, one alone in one."""
    rows = min(2, len(paths))
    columns = -(-len(paths) // rows)
    canvas = Image.new("RGB", (width, height))
    for i in range(rows * columns):
        left, right = (width * (i % columns + k) // columns for k in (0, 1))
        top, bottom = (height * (i // columns + k) // rows for k in (0, 1))
        with Image.open(paths[i % len(paths)]) as picture:
            _fill(canvas, picture.convert("RGB"), (left, top, right, bottom))
    return canvas


def _fill(canvas: Image.Image, picture: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Mirrored at its borders, so that there is no edge which the picture has not."""
    left, top, right, bottom = box
    turned = ImageOps.mirror(picture)
    tiles = [(picture, turned), (ImageOps.flip(picture), ImageOps.flip(turned))]
    for i in range(-(-(bottom - top) // picture.height)):
        for j in range(-(-(right - left) // picture.width)):
            x, y = left + j * picture.width, top + i * picture.height
            part = (0, 0, min(picture.width, right - x), min(picture.height, bottom - y))
            canvas.paste(tiles[i % 2][j % 2].crop(part), (x, y))


class Stages:
    """Runs stages one after the other, and keeps what each of them took."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def run(self, name: str, function: Callable[[], Any]) -> Any:
        gc.collect()
        resident_megabytes(reset_peak=True)
        began = time.perf_counter()
        result = function()
        seconds = time.perf_counter() - began
        after, peak = resident_megabytes()
        self.rows.append({"stage": name, "seconds": seconds, "after": after, "peak": peak})
        return result


def measure(path: str, num_gaussians: int, method: str, limits: dict[str, Any]) -> dict[str, Any]:
    """What a process that does nothing else needs for the picture in a file."""
    stages, seen = Stages(), []

    def look(progress: Progress) -> None:
        seen.append((progress.iteration, progress.seconds, progress.psnr))

    def fit(init: Gaussians | None) -> Any:
        more: dict[str, Any] = (
            {"init": init} if init is not None else {"num_gaussians": num_gaussians}
        )
        return fit_image(image, method=method, report_every=1, on_progress=look, **limits, **more)

    stages.run("imports", lambda: rasterize(heuristic_start(torch.rand(3, 16, 16), 9), 16, 16))
    image = stages.run("read", lambda: read_image(path))
    height, width = image.shape[1:]
    start = None
    if method == "instantgi":
        black = stages.run("heuristic", lambda: heuristic_start(image, num_gaussians))
        start = stages.run("colors", lambda: solve_colors(black, image))
    fitted = stages.run("fit", lambda: fit(start))
    drawn = stages.run("draw", lambda: draw(fitted, height, width))
    drawn = stages.run("to 8 bits", lambda: to_8bit(drawn)) / 255
    level = stages.run("PSNR", lambda: psnr(drawn, image))
    planes = [(a[None], b[None]) for a, b in zip(drawn, image, strict=True)]
    similar = stages.run("MS-SSIM", lambda: [ms_ssim(*pair) for pair in planes])
    known = [float(value) for value in similar if value is not None]
    result = {"height": height, "width": width, "num_gaussians": len(fitted), "psnr": level}
    result |= {"ms_ssim": sum(known) / len(known) if known else None}
    return result | {"stages": stages.rows, "curve": seen}


def print_tables(result: dict[str, Any]) -> None:
    print(
        f"\n{result['width']}x{result['height']} pixels, {result['num_gaussians']} Gaussians, "
        f"{result['method']}\n\n| stage | s | MiB after | MiB at most |\n|---|---|---|---|"
    )
    for row in result["stages"]:
        print(f"| {row['stage']} | {row['seconds']:.2f} | {row['after']:.0f} | {row['peak']:.0f} |")
    steps, seconds, _ = result["curve"][-1]
    ends = [0.0] + [end for _, end, _ in result["curve"]]
    longest = max(b - a for a, b in zip(ends, ends[1:], strict=False))
    similar = "" if result["ms_ssim"] is None else f", MS-SSIM {result['ms_ssim']:.4f}"
    print(
        f"\n{steps} steps in {seconds:.1f} s: {seconds / steps:.3f} s each, at most {longest:.2f}; "
        f"PSNR {result['psnr']:.2f} dB{similar}; "
        f"at most {max(row['peak'] for row in result['stages']) / 1024:.2f} GiB"
    )
    marks = [point for point in result["curve"] if point[0] in MARKS]
    print(
        "PSNR before steps: " + ", ".join(f"{n} {level:.2f} ({s:.0f} s)" for n, s, level in marks)
    )


def run(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """`measure` in a new process."""
    limits = {"seconds": options.seconds} if options.seconds else {"iterations": options.steps}
    count = options.num_gaussians or round(DENSITY * options.megapixels * 1e6)
    arguments = {"path": str(path), "num_gaussians": count}
    arguments |= {"method": options.method, "limits": limits}
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"method": options.method, **json.loads(done.stdout)}


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(**json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with large pictures")
    parser.add_argument("--megapixels", type=float, default=50)
    parser.add_argument("--num-gaussians", type=int, help=f"default: {DENSITY} per pixel")
    parser.add_argument("--steps", type=int, default=50, help="the first relocation is the 20th")
    parser.add_argument("--seconds", type=float, help="of the fit, instead of steps")
    parser.add_argument("--method", default="instantgi", choices=list(METHODS))
    parser.add_argument("--suffix", default=".png", help="of the picture's file")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    options = parser.parse_args()
    header = conditions()
    print(", ".join(f"{key} {value}" for key, value in header.items()))
    height = max(1, round(math.sqrt(0.75e6 * options.megapixels) / SIDE)) * SIDE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"mosaic{options.suffix}"
        picture = mosaic(pictures_in(options.folder), height, round(height * 4 / 3))
        picture.save(path, compress_level=1, quality=95)
        del picture
        result = run(options, path)
    print_tables(result)
    if options.json:
        options.json.write_text(json.dumps({"conditions": header, **result}, indent=1))


if __name__ == "__main__":
    main()
