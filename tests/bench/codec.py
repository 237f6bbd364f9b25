"""Prints what files of Gaussians cost: bytes, against their models' own bits, and milliseconds.

python tests/bench/codec.py --images DIR [--limit K]

Rate and distortion against other codecs: instantgi bench rd.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.timing import conditions, milliseconds

from instantgi.codec import compact, encode, encode_quantised, open_file
from instantgi.codec.entropy import ESCAPE, cost
from instantgi.codec.entropy import encode as encode_symbols
from instantgi.codec.header import KINDS, Steps
from instantgi.codec.refit import RateAware, fit_quantised
from instantgi.fit import fit_image
from instantgi.gaussians import FIELDS, Gaussians
from instantgi.images import read_image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=6)
    options = parser.parse_args()
    images = [read_image(path) for path in sorted(options.images.glob("*.png"))[: options.limit]]
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()))
    print(f"{len(images)} pictures; the same numbers in every profile\n")
    print("| Gaussians | compact | over its models | coded chunks alone | fast | less by |")
    print("|---:|---:|---:|---:|---:|---:|")
    for num in (1600, 3200, 6200, 10_000):
        rows = [measure(image, num) for image in images]
        in_all, coded, models, fast = (mean(row[k] for row in rows) for k in range(4))
        shares = (in_all / models - 1, coded / models - 1)
        cells = [f"{num}", f"{in_all:.0f}", *(f"{100 * share:+.2f} %" for share in shares)]
        cells += [f"{fast:.0f}", f"{100 * (1 - in_all / fast):.1f} %"]
        print("| " + " | ".join(cells) + " |", flush=True)
    decoding(images[0])


def measure(image, num: int) -> tuple[int, int, float, int]:
    """Bytes of the compact file, its coded chunks, their symbols by their tables; the fast file."""
    height, width = image.shape[1:]
    steps = Steps.for_density(num / (height * width))
    fitted = fit_image(image, num_gaussians=num, iterations=150, method=RateAware(steps))
    quantised = fit_quantised(image, fitted, steps, 20)
    bits = 0.0

    def counted(parts) -> bytes:
        nonlocal bits
        for symbols, table in parts:
            last = len(table.frequencies) - 1
            indices = np.clip(symbols - table.lowest, 0, last)
            bits += cost(table)[indices].sum()
            if table.has_beyond:
                bits += ESCAPE * ((indices == 0) | (indices == last)).sum()
        return encode_symbols(parts)

    kept, compact.encode = compact.encode, counted
    try:
        data = encode_quantised(quantised, height, width, steps)
    finally:
        compact.encode = kept
    coded = sum(open_file(data).bytes_of_chunks()[kind.decode()] for kind in KINDS)
    return (
        len(data),
        coded,
        bits / 8,
        len(encode_quantised(quantised, height, width, steps, "fast")),
    )


def decoding(image) -> None:
    height, width = image.shape[1:]
    fitted = fit_image(image, num_gaussians=40_000, iterations=50)
    print(f"\n{len(fitted)} Gaussians, {width}x{height}, bytes in memory to pixels, ms\n")
    print("| profile | bytes | Gaussians | Gaussians and picture |")
    print("|---|---:|---:|---:|")
    for profile in ("compact", "fast", "lossless"):
        data = encode(fitted, height, width, profile=profile)
        times = milliseconds(
            {
                "decode": lambda data=data: open_file(data).gaussians(),
                "draw": lambda data=data: open_file(data).render(),
            },
            20,
        )
        print(f"| {profile} | {len(data)} | " + " | ".join(medians(times)) + " |")
    large = fitted
    for _ in range(3):  # 64 times the picture, side by side
        large = side_by_side(large, height, width)
        height, width = 2 * height, 2 * width
    data = encode(large, height, width)
    file = open_file(data)
    parts = {
        "part": lambda: open_file(data).render(crop=(900, 700, 96, 64)),
        "whole": lambda: open_file(data).gaussians(),
    }
    part_ms, whole_ms = medians(milliseconds(parts, 3))
    print(
        f"\n{len(large)} Gaussians, {width}x{height}, {len(data)} bytes in {len(file.blocks)} "
        f"blocks: 96x64 pixels of it in {part_ms} ms, all decoded in {whole_ms} ms"
    )
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / "bench_codec.gi"
    path.write_bytes(data)
    try:
        command = [sys.executable, "-m", "instantgi", "info", str(path)]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        print(f"`instantgi info` of it: {seconds:.2f} s, with the start of Python")
    finally:
        path.unlink()


def medians(times: dict[str, list[float]]) -> list[str]:
    return [f"{median(values):.1f}" for values in times.values()]


def side_by_side(gaussians, height: int, width: int):
    """The same picture four times."""
    parts = [gaussians.translated(x, y) for x in (0, width) for y in (0, height)]
    return Gaussians(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS))


if __name__ == "__main__":
    main()
