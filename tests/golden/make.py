"""Writes golden files of a format version, with what a reader of the specification finds in them.

python tests/golden/make.py

Never run again for a version that was released: its files are what must stay readable.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import format_reference

from instantgi.codec import Metadata, Steps, encode, header
from instantgi.gaussians import Gaussians

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
        found, gaussians = format_reference.read(data)
        numbers = np.array(gaussians, "<f4").reshape(num, 5 + channels)
        expected[f"{name}.gi"] = {
            "file": hashlib.sha256(data).hexdigest(),
            "gaussians": hashlib.sha256(numbers.tobytes()).hexdigest(),
            "shape": [profile, found["blocks"], *numbers.shape],
        }
        (FOLDER / f"{name}.gi").write_bytes(data)
    (FOLDER / "v1.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
