"""GaussianImage, one level and two levels over N, as the paper's second table has them.

    python tests/bench/lig.py PICTURE [--crop X Y W H] [--per-pixel 0.18,0.25,0.33]
        [--iterations 30000] [--device cuda] [-o results.json]

Steps are of each level, as published: the first of two levels takes as many as the second, of fewer
pixels and Gaussians. A later call adds what is missing. What is "(paper)" is drawn on the CPU only.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from instantgi.bench import conditions
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


def measure(image: torch.Tensor, method: str, num: int, iterations: int) -> dict[str, Any]:
    make, times = METHODS[method]
    began = time.perf_counter()
    made = fit_image(image, method=make(), num_gaussians=num, iterations=times * iterations)
    seconds = time.perf_counter() - began
    level = psnr(draw(made, *image.shape[1:]), image)
    row = {"method": method, "num": num, "psnr": round(level, 3), "seconds": round(seconds, 1)}
    return row | {name: value for name, value in conditions().items() if name in ("commit", "date")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("--crop", type=int, nargs=4, metavar=("X", "Y", "W", "H"))
    parser.add_argument("--per-pixel", default="0.18,0.25,0.33")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--iterations", type=int, default=30_000)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    image = read_image(options.image).to(choose_device(options.device))
    if options.crop:
        x, y, width, height = options.crop
        image = image[:, y : y + height, x : x + width].contiguous()
    settings = {
        "image": options.image.name,
        "crop": options.crop,
        "iterations": options.iterations,
    }
    results = {"settings": settings, "conditions": conditions(), "rows": []}
    if options.output.exists():
        results["rows"] = json.loads(options.output.read_text())["rows"]
        assert json.loads(options.output.read_text())["settings"] == settings
    counts = [round(float(each) * image[0].numel()) for each in options.per_pixel.split(",")]
    for num in counts:
        for method in options.methods.split(","):
            if any((row["method"], row["num"]) == (method, num) for row in results["rows"]):
                continue
            results["rows"].append(measure(image, method, num, options.iterations))
            with replace_on_success(options.output) as partial:
                partial.write_text(json.dumps(results, indent=1) + "\n")
    print("| method | " + " | ".join(f"{num} Gaussians" for num in counts) + " |")
    print("|---|" + "---:|" * len(counts))
    found = {(row["method"], row["num"]): row for row in results["rows"]}
    for method in METHODS:
        rows = [found.get((method, num)) for num in counts]
        cells = [f"{r['psnr']:.2f} dB, {r['seconds']:.0f} s" if r else "-" for r in rows]
        print(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
