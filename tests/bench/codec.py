"""Prints what files of Gaussians cost: bytes, against their models' own bits, and milliseconds.

python tests/bench/codec.py --images DIR [--limit K] [-o OUT.json]

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

from bench.tables import Table, save_tables
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
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    images = [read_image(path) for path in sorted(options.images.glob("*.png"))[: options.limit]]
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()))
    note = f"{len(images)} pictures; the same numbers in every profile"
    print(note + "\n")
    table = Table(COLUMNS)
    for num in (1600, 3200, 6200, 10_000):
        rows = [measure(image, num) for image in images]
        in_all, coded, models, fast = (mean(row[k] for row in rows) for k in range(4))
        shares = [100 * (part / models - 1) for part in (in_all, coded)]
        table.add(num, in_all, *shares, fast, 100 * (1 - in_all / fast))
    fitted = fit_image(images[0], num_gaussians=40_000, iterations=50)
    tables = [table]
    for more in (decoding, of_a_part):
        print()
        tables.append(more(fitted, *images[0].shape[1:]))
    save_tables(options.output, tables, note)


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


COLUMNS = {"Gaussians": "{}", "compact": "{:.0f}", "over its models": "{:+.2f} %"}
COLUMNS |= {"coded chunks alone": "{:+.2f} %", "fast": "{:.0f}", "less by": "{:.1f} %"}


def decoding(fitted: Gaussians, height: int, width: int) -> Table:
    columns = {"profile": "{}", "bytes": "{}", "Gaussians": "{:.1f}"}
    title = f"{len(fitted)} Gaussians, {width}x{height}, bytes in memory to pixels, ms"
    table = Table(columns | {"Gaussians and picture": "{:.1f}"}, title)
    for profile in ("compact", "fast", "lossless"):
        data = encode(fitted, height, width, profile=profile)
        times = milliseconds(
            {
                "decode": lambda data=data: open_file(data).gaussians(),
                "draw": lambda data=data: open_file(data).render(),
            },
            20,
        )
        table.add(profile, len(data), *medians(times))
    return table


def of_a_part(large: Gaussians, height: int, width: int) -> Table:
    for _ in range(3):  # 64 times the picture, side by side
        large = side_by_side(large, height, width)
        height, width = 2 * height, 2 * width
    data = encode(large, height, width)
    parts = {
        "part": lambda: open_file(data).render(crop=(900, 700, 96, 64)),
        "whole": lambda: open_file(data).gaussians(),
    }
    columns = {"Gaussians": "{}", "picture": "{}", "bytes": "{}", "blocks": "{}"}
    columns |= {"96x64 pixels of it, ms": "{:.1f}", "all decoded, ms": "{:.1f}"}
    table = Table(columns | {"`instantgi info`, with the start of Python, s": "{:.2f}"})
    counts = len(large), f"{width}x{height}", len(data), len(open_file(data).blocks)
    table.add(*counts, *medians(milliseconds(parts, 3)), seconds_of_info(data))
    return table


def seconds_of_info(data: bytes) -> float:
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / "bench_codec.gi"
    path.write_bytes(data)
    try:
        command = [sys.executable, "-m", "instantgi", "info", str(path)]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began
    finally:
        path.unlink()


def medians(times: dict[str, list[float]]) -> list[float]:
    return [median(values) for values in times.values()]


def side_by_side(gaussians, height: int, width: int):
    """The same picture four times."""
    parts = [gaussians.translated(x, y) for x in (0, width) for y in (0, height)]
    return Gaussians(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS))


if __name__ == "__main__":
    main()
