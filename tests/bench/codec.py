"""Prints what files of the pictures of a folder cost and give at a few rates.

python tests/bench/codec.py --images DIR [--bpp 0.15,0.3,0.6,1] [--limit K] [--json OUT]

Sizes are of whole files, PSNR is of the decoded picture as 8 bits. Against JPEG and JPEG 2000 of
Pillow at the rates that their settings give, interpolated over log bpp.
"""

import argparse
import io
import json
import math
import sys
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.timing import conditions

from instantgi.codec import open_file
from instantgi.codec.target import Target, encode_image
from instantgi.images import read_image, to_8bit
from instantgi.metrics import psnr


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--bpp", default="0.15,0.3,0.6,1")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rates = [float(rate) for rate in options.bpp.split(",")]
    paths = sorted(options.images.glob("*.png"))[: options.limit]
    images = [read_image(path) for path in paths]
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()))
    print(f"{len(images)} pictures\n")
    print("| bpp asked | bpp | PSNR dB | encode s | decode ms | JPEG dB | JPEG 2000 dB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    curves = {name: [curve(image, name) for image in images] for name in ("JPEG", "JPEG2000")}
    rows = []
    for rate in rates:
        measured = [measure(image, rate) for image in images]
        row = {name: mean(each[name] for each in measured) for name in measured[0]}
        for name, all_curves in curves.items():
            row[name] = mean(interpolated(points, rate) for points in all_curves)
        rows.append({"bpp asked": rate, **row, "pictures": measured})
        cells = [f"{row['bpp']:.4f}", f"{row['psnr']:.2f}", f"{row['encode']:.1f}"]
        cells += [f"{1000 * row['decode']:.0f}", f"{row['JPEG']:.2f}", f"{row['JPEG2000']:.2f}"]
        print(f"| {rate} | " + " | ".join(cells) + " |", flush=True)
    if options.json:
        results = {"conditions": conditions(), "images": [p.name for p in paths], "rows": rows}
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(image: torch.Tensor, rate: float) -> dict[str, float]:
    began = time.perf_counter()
    data = encode_image(image, Target(bpp=rate))
    encoded = time.perf_counter()
    drawn = open_file(data).render()
    decoded = time.perf_counter()
    return {
        "bpp": 8 * len(data) / image[0].numel(),
        "psnr": psnr(drawn, image),
        "encode": encoded - began,
        "decode": decoded - encoded,
    }


def curve(image: torch.Tensor, name: str) -> list[tuple[float, float]]:
    """(bpp, dB) of another codec over its settings."""
    pixels = to_8bit(image).movedim(0, 2).numpy()
    settings: list[dict] = [{"quality": quality, "optimize": True} for quality in range(2, 96, 3)]
    if name == "JPEG2000":
        ratios = [24 / 2**x for x in np.arange(-4, 2, 0.25)]
        common = {"quality_mode": "rates", "irreversible": True, "mct": 1}
        settings = [{**common, "quality_layers": [ratio]} for ratio in ratios]
    points = []
    for options in settings:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, name, **options)
        drawn = torch.from_numpy(np.array(Image.open(buffer))).movedim(2, 0) / 255
        points.append((8 * buffer.tell() / image[0].numel(), psnr(drawn, image)))
    return sorted(points)


def interpolated(points: list[tuple[float, float]], rate: float) -> float:
    rates, levels = zip(*points, strict=True)
    return float(np.interp(math.log(rate), np.log(rates), levels))


if __name__ == "__main__":
    main()
