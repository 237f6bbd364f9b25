"""`python -m instantgi`: the command `instantgi`."""

import sys

from instantgi.cli import main

if __name__ == "__main__":
    sys.exit(main())
