"""Fits Gaussians to a picture and draws a part of it larger, beside the pixels enlarged as usual.

python examples/fit_and_zoom.py
python examples/fit_and_zoom.py PICTURE --part 100 80 120 90 --scale 6 --iterations 1000

Writes OUT/zoom.png, bicubic on the left and Gaussians on the right, and OUT/gaussians.gi.
"""

import argparse
from pathlib import Path

import torch

import instantgi


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("picture", nargs="?", default="assets/kodim23.png")
    parser.add_argument("--part", nargs=4, type=int, metavar=("X", "Y", "W", "H"), help="pixels")
    parser.add_argument("--scale", type=int, default=8)
    parser.add_argument("--num-gaussians", type=int, help="default: 0.11 per pixel")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/zoom"), metavar="OUT")
    options = parser.parse_args()

    image = instantgi.read_image(options.picture)
    height, width = image.shape[1:]
    gaussians = instantgi.fit_image(
        image, num_gaussians=options.num_gaussians, iterations=options.iterations
    )

    x, y, part_width, part_height = options.part or default_part(width, height)
    size = part_height * options.scale, part_width * options.scale
    step = (1 / options.scale, 1 / options.scale)
    drawn = instantgi.rasterize(gaussians, *size, origin=(x, y), step=step)
    pixels = image[None, :, y : y + part_height, x : x + part_width]
    enlarged = torch.nn.functional.interpolate(pixels, size, mode="bicubic")[0]

    options.output.mkdir(parents=True, exist_ok=True)
    instantgi.write_image(options.output / "zoom.png", torch.cat([enlarged, drawn], 2))
    data = instantgi.encode(gaussians, height, width, profile="lossless")
    (options.output / "gaussians.gi").write_bytes(data)
    print(f"{len(gaussians)} Gaussians; {options.output / 'zoom.png'}")


def default_part(width: int, height: int) -> tuple[int, int, int, int]:
    """An eighth of the picture's sides, a little above its middle on the right."""
    return width * 5 // 8, height // 4, max(1, width // 8), max(1, height // 8)


if __name__ == "__main__":
    main()
