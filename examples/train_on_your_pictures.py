"""Trains the network that ships on pictures of yours, and compares it with what it was.

python examples/train_on_your_pictures.py
python examples/train_on_your_pictures.py FOLDER --steps 2000 --target-iterations 300 --crop 256

Writes OUT/targets (a fit of each picture) and OUT/network (for `instantgi infer --checkpoint`).
Needs `pip install -e ".[train]"`. A single picture is cut into quarters: one is to validate on.
"""

import argparse
import sys
from pathlib import Path

import lightning
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # `data` is in the repository, not the package

import instantgi
from data import Folder, PrepareTargets, Targets, list_pictures, read_rgb
from instantgi.metrics import psnr
from instantgi.training import SavePretrained, TrainInstantGI


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("assets"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--crop", type=int, default=128, help="side in pixels")
    parser.add_argument("--target-iterations", type=int, default=50)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/train"), metavar="OUT")
    options = parser.parse_args()
    folder, network = options.folder, options.output / "network"
    if len(list_pictures(folder)) == 1:
        folder = quarters(list_pictures(folder)[0], options.output / "quarters")

    targets = options.output / "targets"
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    prepare = PrepareTargets(str(targets), iterations=options.target_iterations)
    trainer.predict(prepare, datamodule=Folder(str(folder)))

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        callbacks=[SavePretrained(folder=str(network))],
    )
    module = TrainInstantGI(size="tiny", pretrained="tiny", learning_rate=2e-4, refine_steps=10)
    steps = min(options.steps, 500)  # between two validations
    pictures = Targets(str(targets), crop=options.crop, batch_size=2, steps_per_epoch=steps)
    trainer.fit(module, datamodule=pictures)

    for item in pictures.validation:
        image = read_rgb(item.folder / f"{item.name}.webp")
        scores = [decibels(name, image) for name in ("tiny", network)]
        print(f"{item.name}: {scores[0]:.2f} dB before, {scores[1]:.2f} dB after")
    print(f"instantgi infer PICTURE --checkpoint {network}")


def quarters(path: Path, folder: Path) -> Path:
    """A folder with the four quarters of a picture."""
    image = read_rgb(path)
    height, width = (side // 2 for side in image.shape[1:])
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        top, left = number // 2 * height, number % 2 * width
        part = image[:, top : top + height, left : left + width]
        instantgi.write_image(folder / f"{path.stem}_{number}.png", part)
    return folder


def decibels(name: str | Path, image: Tensor) -> float:
    """PSNR of what a network draws by itself."""
    gaussians = instantgi.InstantGI.from_pretrained(name)(
        image, num_gaussians=image[0].numel() // 9
    )
    return psnr(instantgi.rasterize(gaussians, *image.shape[1:]), image)


if __name__ == "__main__":
    main()
