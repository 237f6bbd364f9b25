"""What seeds give and cost, choice by choice, as the tables of SGI's paper have it.

    python tests/bench/sgi.py PICTURE [--side 2040] [--num-gaussians 50000] [--iterations 15000]
        [--rows NAME,…] [--repeats 1] [-o results.json]

Every row is a whole file of the same picture: its bytes, what it decodes to, how long the fit took
and how long the file takes from bytes to pixels. "Float32" is what the seeds' numbers and networks
take before they are rounded. Rows named K, L, F and "lambda" change one choice of "sgi", those of
CHOICES make one as the paper does; "compact" is our own profile in as many bytes as "sgi",
"compact as ROW" in as many as that row; "x10" is ten times as many steps. Sizes rounded in pixels
have no file of seeds: these rows are lossless files, with what their context says the numbers would
take. With --repeats every row is made so often, in turns, and its seconds are the median. A later
call adds what is missing.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.timing import conditions

from instantgi.codec import Index, decode, encode
from instantgi.codec.target import Target, encode_image
from instantgi.context import sign_bits
from instantgi.files import replace_on_success
from instantgi.fit import SGI, GaussianImage, fit_image
from instantgi.fit.lig import LIG
from instantgi.fit.sgi import OURS
from instantgi.images import read_image
from instantgi.metrics import ms_ssim, psnr, ssim
from instantgi.render.draw import draw
from instantgi.representations import Seeds

SHIPPED = "sgi"
SEEDS: dict[str, dict[str, Any]] = {
    SHIPPED: {},
    "paper": {"paper": True},
    "lambda 0": {"rate": 0.0},
    "lambda 0.0005": {"rate": 0.0005},
    "lambda 0.003": {"rate": 0.003},
    "L 1": {"levels": 1},
    "L 2": {"levels": 2},
    "L 4": {"levels": 4},
    "K 5": {"per_seed": 5},
    "K 10": {"per_seed": 10},
    "K 15": {"per_seed": 15},
    "K 20": {"per_seed": 20},
    "F 24": {"features": 24},
    "F 50": {"features": 50},
    "F 24 lambda 0.002": {"features": 24, "rate": 0.002},
}
CHOICES = {  # of our recipe, each as published
    "no log sizes": dataclasses.replace(OURS, linear=True, bases=(0.25, 1.0, 0.05)),
    "noise to the end": dataclasses.replace(OURS, rounded_from=1.0),
    "context from 0.8": dataclasses.replace(OURS, context_from=0.8),
    "smaller pictures": dataclasses.replace(OURS, averaged=True),
    "absolute difference": dataclasses.replace(OURS, absolute=True),
    "betas 0.9 and 0.999": dataclasses.replace(OURS, betas=(0.9, 0.999)),
    "offsets at 0": dataclasses.replace(OURS, spread=False),
}
OTHERS: dict[str, tuple[Any, int]] = {  # and how many times the steps
    "GaussianImage": (GaussianImage, 1),
    "LIG": (LIG, 1),
    "GaussianImage x10": (GaussianImage, 10),
    "LIG x10": (LIG, 10),
}
COMPACT, AS = "compact", "compact as "
RATES = ("lambda 0.0005", "lambda 0.003", "F 24", "F 50")  # a curve beside that of "compact"
ROWS = (*SEEDS, *list(OTHERS)[:2], COMPACT, *(AS + row for row in RATES))
RUNS = 7  # of decoding


def make_fitter(row: str) -> Any:
    if row in OTHERS:
        return OTHERS[row][0]()
    fitter = SGI(**SEEDS.get(row, {}))
    fitter.recipe = CHOICES.get(row, fitter.recipe)
    return fitter


def measure(image: torch.Tensor, row: str, options: argparse.Namespace, num_bytes: int):
    size = (image.shape[1], image.shape[2])
    began = time.perf_counter()
    made = fitter = None
    if num_bytes:
        data = encode_image(image, Target(num_bytes=num_bytes))
    else:
        fitter, times = make_fitter(row), OTHERS[row][1] if row in OTHERS else 1
        made = fit_image(
            image,
            method=fitter,
            num_gaussians=options.num_gaussians,
            iterations=times * options.iterations,
        )
    seconds = time.perf_counter() - began
    if made is not None:
        is_short = isinstance(made, Seeds) and made.context is not None
        data = encode(made, *size, profile="seeds" if is_short else "lossless")
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        drawn = draw(decode(data), *size)
        times.append(time.perf_counter() - began)
    drawn = drawn.clamp(0, 1)
    similarity = ms_ssim(drawn, image)
    here = conditions()
    result = {
        "row": row,
        "date": here["date"],
        "commit": here["commit"],
        "num": Index(data).num_gaussians,
        "bytes": len(data),
        "psnr": psnr(drawn, image),
        "ssim": float(ssim(drawn, image)),
        "ms_ssim": math.nan if similarity is None else float(similarity),
        "seconds": seconds,
        "decode_seconds": median(times),
        "chunks": Index(data).bytes_of_chunks(),
    }
    if isinstance(made, Seeds):
        assert isinstance(fitter, SGI)
        networks = [made.colors, made.shapes] + ([made.context.network] if made.context else [])
        tensors = [part for network in networks for part in network.tensors]
        numbers = made.features.numel() + made.scalings.numel() + made.offsets.numel()
        result |= {
            "float32": 4 * (numbers + sum(part.numel() for part in tensors)),
            "float32_numbers": 4 * numbers,
        }
        if made.context is not None:
            lengths = made.context.placed(made.grid).lengths
            signs = sign_bits(made.context.signs, lengths, torch.tensor(lengths))
            result["estimate"] = float(made.bits.sum()) / 8
            result["grid_bytes"] = round(float(signs) / 8)
        elif fitter.rate > 0:
            result["estimate"] = float(fitter.bits) * numbers / 8
    return result


def print_rows(rows: list[dict[str, Any]]) -> None:
    names = ["", "Gaussians", "bytes", "PSNR", "SSIM", "MS-SSIM", "fit", "decode and draw"]
    print("| " + " | ".join([*names, "float32", "numbers shorter", "their estimate"]) + " |")
    print("|---|" + "---:|" * 10)
    for row in rows:
        before = row.get("float32_numbers")
        coded = sum(row["chunks"].get(kind, 0) for kind in ("FEAT", "SCAL", "OFFS"))
        cells = [
            row["row"],
            f"{row['num']:,}",
            f"{row['bytes']:,}",
            f"{row['psnr']:.2f} dB",
            f"{row['ssim']:.4f}",
            f"{row['ms_ssim']:.4f}",
            f"{row['seconds']:.0f} s",
            f"{1000 * row['decode_seconds']:.0f} ms",
            f"{row['float32']:,}" if before else "",
            f"{before / coded:.1f}x" if before and coded else "",
            f"{row['estimate']:,.0f}" if "estimate" in row else "",
        ]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("--side", type=int, help="the longer side, px; smaller ones stay")
    parser.add_argument("--num-gaussians", type=int, default=50_000)
    parser.add_argument("--iterations", type=int, default=15_000)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    image = read_image(options.image)
    if options.side and options.side < max(image.shape[1:]):
        factor = options.side / max(image.shape[1:])
        size = [round(side * factor) for side in image.shape[1:]]
        image = torch.nn.functional.interpolate(
            image[None], size, mode="bicubic", antialias=True, align_corners=False
        )[0].clamp(0, 1)
    settings = {
        "image": options.image.name,
        "size": [image.shape[2], image.shape[1]],
        "num_gaussians": options.num_gaussians,
        "iterations": options.iterations,
    }
    results: dict[str, Any] = {"settings": settings, "conditions": conditions(), "rows": []}
    if options.output.exists():
        before = json.loads(options.output.read_text())
        assert before["settings"] == settings, f"{options.output} has other settings"
        then = {name: before["conditions"][name] for name in ("date", "commit")}
        results["rows"] = [then | row for row in before["rows"]]
    names: list[str] = options.repeats * options.rows.split(",")
    for index, row in enumerate(names):
        done = {each["row"]: each for each in results["rows"]}
        runs = done[row].get("runs", [done[row]["seconds"]]) if row in done else []
        if len(runs) > names[:index].count(row):
            continue
        like = SHIPPED if row == COMPACT else row.removeprefix(AS)
        num_bytes = done[like]["bytes"] if row.startswith(COMPACT) else 0
        made = measure(image, row, options, num_bytes)
        runs = [*runs, made["seconds"]]
        done[row] = made | {"seconds": median(runs), "runs": runs}
        results["rows"] = list(done.values())
        with replace_on_success(options.output) as partial:
            partial.write_text(json.dumps(results, indent=1) + "\n")
        print_rows([done[row]])
    print("; ".join(f"{name}: {value}" for name, value in settings.items()))
    print("; ".join(f"{name}: {value}" for name, value in results["conditions"].items()), "\n")
    print_rows(results["rows"])


if __name__ == "__main__":
    main()
