"""Trains a network per choice from nothing, for as many steps each, and compares them.

python tests/bench/train_ablations.py --images DIR [--targets DIR] [--steps N] [--limit K]
                                      [--variants "A;B"] [--folder DIR] [-o OUT.json]

The base is `configs/instantgi_tiny.yaml` on one thread, two pictures a step; every variant changes
what its name says. One that is trained already is only measured. Columns as in `ablation.py`.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from bench.ablation import COLUMNS, means, measure
from bench.tables import Table, save_tables
from bench.timing import conditions

from instantgi.images import read_image
from instantgi.models import InstantGI

ROOT = Path(__file__).parents[2]
PUBLISHED = {"fields": "published", "looks": 0}
CORRECTED = PUBLISHED | {
    "padding": "border",
    "rotation": "angle",
    "triangle": "pixels",
    "centers": "shared",
}
# name → options of the network, arguments of `TrainInstantGI`, arguments of the prediction
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "ours": ({}, {}, {}),
    "no look at the error": ({"looks": 0}, {}, {}),
    "color field": ({"color": "field"}, {}, {}),
    "trained at one density": ({}, {"density": "[0.11, 0.11]"}, {}),
    "map from nothing": ({"position": "field"}, {}, {}),
    "own number, k = 4": ({}, {}, {"patch_size": 4}),
    "own number, k = 4, trained at k = 4": (
        {},
        {"density": "null", "patch_size": 4},
        {"patch_size": 4},
    ),
    "published fields and objective": (
        PUBLISHED | {"norm": "batch"},
        {"objective": "published"},
        {},
    ),
    "the same, group norm": (PUBLISHED | {"norm": "group"}, {"objective": "published"}, {}),
    "the same, all corrections": (CORRECTED, {"objective": "published"}, {}),
    "corrected fields, our objective": (CORRECTED, {}, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--targets", type=Path, default=ROOT / "data" / "targets")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--variants", help="names, separated by semicolons; all by default")
    parser.add_argument("--num-gaussians", type=int, default=43_000)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "ablations")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    names = options.variants.split(";") if options.variants else list(VARIANTS)
    # one training for all variants that only predict differently
    trained = {name: trained_as(name) for name in names}
    with ThreadPoolExecutor(options.jobs) as pool:
        each = list(dict.fromkeys(trained.values()))
        folders = dict(zip(each, pool.map(lambda name: train(name, options), each), strict=True))
    paths = sorted(options.images.glob("*.png"))[: options.limit]
    images = [read_image(path) for path in paths]
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()))
    note = f"{len(images)} pictures; {options.steps} steps of two crops from nothing"
    print(note + "\n")
    table = Table(COLUMNS)
    for name in names:
        network = InstantGI.from_pretrained(folders[trained[name]])
        asked = {"num_gaussians": options.num_gaussians} | VARIANTS[name][2]
        if "patch_size" in asked:
            asked["num_gaussians"] = None

        def make(image: torch.Tensor, network=network, asked=asked):
            return network(image, **asked)

        table.add(name, *means([measure(make, image) for image in images]))
    save_tables(options.output, [table], note)


def trained_as(name: str) -> str:
    return next(other for other in VARIANTS if VARIANTS[other][:2] == VARIANTS[name][:2])


def train(name: str, options: argparse.Namespace) -> Path:
    """The folder of the trained network of a variant."""
    sizes, arguments, _ = VARIANTS[name]
    folder = options.folder.resolve() / slug(name)
    pretrained = folder / "runs" / "tiny" / "pretrained"  # as the config says, from the folder on
    if (pretrained / "config.json").is_file():
        return pretrained
    settings: dict[str, Any] = {
        "trainer.max_steps": options.steps,
        "trainer.enable_progress_bar": "false",
        "data.init_args.root": options.targets.resolve(),
        "data.init_args.steps_per_epoch": options.steps,
        "data.init_args.validation_count": 2,
        "model.init_args.options": json.dumps(sizes),
    }
    settings |= {f"model.init_args.{key}": value for key, value in arguments.items()}
    command = [sys.executable, str(ROOT / "train.py"), "fit"]
    command += ["--config", str(ROOT / "configs" / "instantgi_tiny.yaml")]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=log, stderr=log, cwd=folder, env=environment)
    return pretrained


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


if __name__ == "__main__":
    main()
