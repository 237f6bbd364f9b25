"""Pictures → Gaussians: the command `instantgi infer` (see `python infer.py --help`)."""

import sys

from instantgi.cli import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))
