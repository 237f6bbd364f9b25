"""Draws the pictures of docs/training.md: what a run of train.py shows.

python docs/run_curves.py METRICS.csv NETWORK [IMAGE] [-o FOLDER]

Writes `curves.svg`, of what Lightning's CSVLogger kept, and `sheet.webp`, what the trained network
sees, says and draws of a part of a picture: a logger of pictures (Weights & Biases, TensorBoard)
shows the same as `val/picture_0`.
"""

import argparse
import csv
from pathlib import Path

from PIL import Image

from instantgi import InstantGI, read_image
from instantgi.files import replace_on_success
from instantgi.images import to_8bit
from instantgi.training import draw_sheet

LEFT, TOP, SIDE = 360, 80, 256  # the part, pixels: a parrot's head
CHOSEN = ("val/psnr", "val/psnr_solved", "val/psnr_20")


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("metrics", type=Path)
    parser.add_argument("network", help="a folder that SavePretrained wrote")
    parser.add_argument("image", nargs="?", default="assets/kodim23.png")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/training"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with open(options.metrics, newline="") as file:
        draw_curves(list(csv.DictReader(file)), options.output / "curves.svg")
    image = read_image(options.image)[:, TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    sheet = to_8bit(draw_sheet(InstantGI.from_pretrained(options.network), image.contiguous()))
    picture = Image.fromarray(sheet.movedim(0, 2).numpy())
    picture.save(options.output / "sheet.webp", quality=80, method=6)


def draw_curves(rows: list[dict[str, str]], path: Path) -> None:
    """The loss with its parts, and the PSNR of the pictures that are set aside, over the steps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, levels = figure.subplots(1, 2)
    parts = [name for name in rows[0] if name.startswith("train/")]
    for axes, names, label in ((losses, parts, "loss"), (levels, CHOSEN, "PSNR, dB")):
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            strong = {"color": "black", "lw": 2} if name == "train/loss" else {"lw": 1.2}
            axes.plot(*zip(*points, strict=True), label=name, **strong)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, ncols=2)
    # the same numbers are the same file
    with rc_context({"svg.hashsalt": "instantgi"}), replace_on_success(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
