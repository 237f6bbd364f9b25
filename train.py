"""Trains, validates, tests, and prepares targets (`predict`); see `python train.py --help`.

LightningCLI over `instantgi.training` and `data`; one YAML of `configs/` is one run.
"""

import sys
import warnings

from lightning.pytorch.cli import LightningCLI

import instantgi.training  # noqa: F401


def main(arguments: list[str] | None = None) -> None:
    # said of every data loader; on two cores the training process reads fast enough itself
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    try:
        LightningCLI(args=arguments, save_config_kwargs={"overwrite": True})
    except FileNotFoundError as error:  # a folder of pictures or targets that is not there
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
