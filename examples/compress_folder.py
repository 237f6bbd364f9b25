"""Turns every picture of a folder into a small file and prints how large and how good it is.

python examples/compress_folder.py
python examples/compress_folder.py FOLDER --bpp 0.5 --seconds 20
python examples/compress_folder.py FOLDER --psnr 35

Writes OUT/<name>.gi and, to look at, OUT/<name>.png. What cannot be read or made
is named and left out.
"""

import argparse
from pathlib import Path

import instantgi
from instantgi.codec.target import Target, encode_image
from instantgi.images import to_8bit
from instantgi.metrics import bits_per_pixel, psnr_of_levels


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("assets"))
    parser.add_argument("--bpp", type=float, help="bits of a file per pixel (default: 0.3)")
    parser.add_argument("--psnr", type=float, help="dB, instead of a size")
    parser.add_argument("--seconds", type=float, default=5, help="for each picture, about")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/compressed"), metavar="OUT")
    options = parser.parse_args()
    bpp = 0.3 if options.bpp is None and options.psnr is None else options.bpp
    target = Target(bpp=bpp, psnr=options.psnr, seconds=options.seconds)

    options.output.mkdir(parents=True, exist_ok=True)
    print(f"{'picture':30} {'bytes':>9} {'bpp':>6} {'dB':>6}")
    for path in sorted(options.folder.iterdir()):
        try:
            image = instantgi.read_image(path)
            data = encode_image(image, target)
        except (OSError, ValueError) as error:  # no picture, or too poor at this size
            print(f"left out: {path.name}: {error}")
            continue
        picture = instantgi.open(data).render()
        (options.output / f"{path.stem}.gi").write_bytes(data)
        instantgi.write_image(options.output / f"{path.stem}.png", picture)
        decibels = psnr_of_levels(to_8bit(picture), to_8bit(image))
        share = bits_per_pixel(len(data), *image.shape[1:])
        print(f"{path.name:30} {len(data):9} {share:6.3f} {decibels:6.2f}")


if __name__ == "__main__":
    main()
