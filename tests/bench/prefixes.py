"""Prints what keeping earlier stages of Image-GS good pictures gives them and costs the last one.

python tests/bench/prefixes.py [IMAGE] [--num-gaussians 160] [--iterations 1000]
                               [--prefixes 0,0.2] [-o OUT.json]

Of a part of the picture: PSNR of each stage alone, the first so many Gaussians.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.tables import Table, save_tables
from bench.timing import conditions

from instantgi.fit import ImageGS, fit_image
from instantgi.fit.imagegs import STAGES
from instantgi.images import read_image
from instantgi.metrics import psnr
from instantgi.render.draw import draw

LEFT, TOP, SIDE = 200, 100, 128  # of the part, pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("image", nargs="?", default="assets/kodim23.png")
    parser.add_argument("--num-gaussians", type=int, default=160)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--prefixes", default="0,0.2")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    image = read_image(options.image)[:, TOP : TOP + SIDE, LEFT : LEFT + SIDE].contiguous()
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()))
    table = Table({"prefixes": "{}"} | {f"stage {k + 1}, dB": "{:.2f}" for k in range(STAGES)})
    for share in options.prefixes.split(","):
        made = fit_image(
            image,
            method=ImageGS(prefixes=float(share)),
            num_gaussians=options.num_gaussians,
            iterations=options.iterations,
        )
        stages = [made.stage(k) for k in range(STAGES)]
        table.add(share, *(psnr(draw(stage, SIDE, SIDE), image) for stage in stages))
    note = f"{options.num_gaussians} Gaussians on {SIDE}x{SIDE} pixels, {options.iterations} steps"
    save_tables(options.output, [table], note)


if __name__ == "__main__":
    main()
