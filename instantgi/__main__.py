"""`python -m instantgi`: the command `instantgi`."""

import sys


def main() -> int:
    """Of the command line; also Ctrl-C while it is still loading ends in an exit code."""
    try:
        from instantgi.cli import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
