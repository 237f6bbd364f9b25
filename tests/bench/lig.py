"""GaussianImage, one level and two levels over N, as the paper's second table has them.

    python tests/bench/lig.py PICTURES… [--crop X Y W H] [--per-pixel 0.18,0.25,0.33]
        [--iterations 30000] [--device cuda] [-o results.json]

Pictures, or folders of them; the table has means over pictures. Steps are of each level, as
published: the first of two levels takes as many as the second, of fewer pixels and Gaussians. A
later call adds what is missing. What is "(paper)" is drawn on the CPU only.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

from instantgi.bench import conditions, pictures_in, provenance
from instantgi.files import replace_on_success
from instantgi.fit import GaussianImage, LocalAdam, fit_image
from instantgi.fit.lig import LIG
from instantgi.images import read_image
from instantgi.metrics import psnr
from instantgi.native import choose_device
from instantgi.render.draw import draw

METHODS: dict[str, tuple[Any, int]] = {  # and how many times the steps
    "GaussianImage": (GaussianImage, 1),
    "one level (paper)": (lambda: LIG(1, paper=True), 1),
    "two levels (paper)": (lambda: LIG(2, paper=True), 2),
    "one level": (lambda: LIG(1), 1),
    "two levels": (lambda: LIG(2), 2),
    "instantgi": (LocalAdam, 1),
}


def measure(path: Path, density: float, method: str, options: argparse.Namespace) -> dict[str, Any]:
    image = read_image(path)
    if options.crop:
        x, y, width, height = options.crop
        image = image[:, y : y + height, x : x + width].contiguous()
    image = image.to(choose_device(options.device))
    num = round(density * image[0].numel())
    make, times = METHODS[method]
    steps = times * options.iterations
    began = time.perf_counter()
    made = fit_image(image, method=make(), num_gaussians=num, iterations=steps)
    seconds = time.perf_counter() - began
    level = psnr(draw(made, *image.shape[1:]), image)
    row = {"image": path.name, "per_pixel": density, "method": method, "num": num}
    row |= {"psnr": round(level, 3), "seconds": round(seconds, 1)}
    return row | {name: value for name, value in conditions().items() if name in ("commit", "date")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--crop", type=int, nargs=4, metavar=("X", "Y", "W", "H"))
    parser.add_argument("--per-pixel", default="0.18,0.25,0.33")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--iterations", type=int, default=30_000)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    paths = [path for given in options.images for path in pictures(given)]
    settings = {
        "image": ", ".join(path.name for path in paths),
        "crop": options.crop,
        "iterations": options.iterations,
    }
    here = conditions() | provenance(str(choose_device(options.device)))
    results = {"settings": settings, "conditions": here, "rows": []}
    if options.output.exists():
        results["rows"] = json.loads(options.output.read_text())["rows"]
        assert json.loads(options.output.read_text())["settings"] == settings
    densities = [float(each) for each in options.per_pixel.split(",")]
    methods = options.methods.split(",")
    for key in [(path, each, method) for path in paths for each in densities for method in methods]:
        if not found(results["rows"], *key):
            results["rows"].append(measure(*key, options))
            with replace_on_success(options.output) as partial:
                partial.write_text(json.dumps(results, indent=1) + "\n")
    print("| method | " + " | ".join(f"{each} a pixel" for each in densities) + " |")
    print("|---|" + "---:|" * len(densities))
    for method in methods:
        cells = []
        for each in densities:
            rows = [row for path in paths for row in found(results["rows"], path, each, method)]
            level, seconds = (mean(row[name] for row in rows) for name in ("psnr", "seconds"))
            cells.append(f"{level:.2f} dB, {seconds:.0f} s")
        print(f"| {method} | " + " | ".join(cells) + " |")


def pictures(given: Path) -> list[Path]:
    return pictures_in(given) if given.is_dir() else [given]


def found(rows: list[dict[str, Any]], path: Path, density: float, method: str) -> list[Any]:
    """The row of a picture, if it is there."""
    key = path.name, density, method
    return [row for row in rows if (row["image"], row["per_pixel"], row["method"]) == key]


if __name__ == "__main__":
    main()
