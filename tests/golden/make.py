"""Writes golden files of a format version, with what a reader of the specification finds in them.

python tests/golden/make.py

Never run again for a version that was released: its files are what must stay readable.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import format_reference
from scenes import random_seeds

from instantgi.codec import Metadata, Steps, encode, header
from instantgi.gaussians import Gaussians
from instantgi.representations import Level, Levels, Mixture

FOLDER = Path(__file__).parent
BLOCKS = 40  # Gaussians
CASES = {  # profile, channels, Gaussians, whether in blocks, scale of the steps
    "v1_lossless": ("lossless", 3, 20, False, 1),
    "v1_lossless_blocks": ("lossless", 4, 90, True, 1),
    "v1_fast": ("fast", 3, 150, False, 1),
    "v1_fast_blocks": ("fast", 2, 150, True, 0.1),
    "v1_compact": ("compact", 3, 400, False, 1),
    "v1_compact_blocks": ("compact", 4, 300, True, 0.02),
    "v1_compact_gray": ("compact", 1, 100, False, 0.3),
    "v1_compact_empty": ("compact", 3, 0, False, 1),
}
HEIGHT, WIDTH = 37, 50


def scene(num: int, channels: int, seed: int) -> Gaussians:
    random = np.random.default_rng(seed)
    means = random.uniform(0, 1, (num, 2)) ** 1.5 * [WIDTH, HEIGHT]
    cholesky = np.stack(
        [random.lognormal(0.3, 0.6, num), random.normal(0, 1, num), random.lognormal(0, 0.6, num)],
        1,
    )
    colors = random.laplace(0.1, 0.5, (num, channels)) / (1 + cholesky[:, :1])
    fields = (means, cholesky, colors)
    return Gaussians(*(torch.from_numpy(field.astype(np.float32)) for field in fields))


def parts() -> dict[str, tuple[str, Mixture | Levels]]:
    """Profile and content of files of several parts."""
    fine, coarse = scene(120, 3, 50), scene(30, 3, 51).scaled(0.5, 0.5)
    size = HEIGHT // 2, WIDTH // 2
    mixture = Mixture(fine, top_k=7, epsilon=1e-3, stages=(60, 90, 120))
    levels = Levels((Level(coarse, *size), Level(fine, HEIGHT, WIDTH, low=-0.5, high=0.75)))
    return {
        "v1_lossless_mixture": ("lossless", mixture),
        "v1_fast_levels": ("fast", levels),
        "v1_compact_mixture": ("compact", mixture),
        "v1_compact_levels": ("compact", levels),
    }


def write(name: str, data: bytes) -> dict[str, Any]:
    """The file, and what a reader finds in it."""
    found = format_reference.read_parts(data)
    rows = [row for _, gaussians in found for row in gaussians]
    first = found[0][0]
    numbers = np.array(rows, "<f4").reshape(len(rows), 5 + first["channels"])
    if "symbols" in first:  # Gaussians of seeds are not the same bits everywhere
        numbers = np.array(first["values"], "<f4")
    (FOLDER / f"{name}.gi").write_bytes(data)
    return {
        "file": hashlib.sha256(data).hexdigest(),
        "gaussians": hashlib.sha256(numbers.tobytes()).hexdigest(),
        "shape": [
            ("lossless", "fast", "compact", "seeds")[first["profile"]],
            sum(each["blocks"] for each, _ in found),
            *numbers.shape,
        ],
    }


def main() -> None:
    expected = {}
    for seed, (name, case) in enumerate(CASES.items()):
        profile, channels, num, in_blocks, scale = case
        header.PER_BLOCK = BLOCKS if in_blocks else 2**15
        steps = None if profile == "lossless" else Steps(0.5, 4, 0.068, 0.085, 0.11).scaled(scale)
        metadata = Metadata("golden", {"case": name}, b"profile", b"Exif\0\0")
        data = encode(
            scene(num, channels, seed),
            HEIGHT,
            WIDTH,
            profile=profile,
            steps=steps,
            metadata=metadata,
        )
        expected[f"{name}.gi"] = write(name, data)
    header.PER_BLOCK = 2**15
    metadata = Metadata("golden", {"case": "parts"})
    for name, (profile, made) in parts().items():
        data = encode(made, HEIGHT, WIDTH, profile=profile, metadata=metadata)
        expected[f"{name}.gi"] = write(name, data)
    made = random_seeds(40, HEIGHT, WIDTH, seed=1)
    data = encode(made, HEIGHT, WIDTH, profile="seeds", metadata=metadata)
    expected["v1_seeds.gi"] = write("v1_seeds", data)
    (FOLDER / "v1.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
