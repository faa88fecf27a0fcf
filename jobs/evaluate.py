"""Entry point of `ray job submit -- python jobs/evaluate.py ...`: the flags of `skinray evaluate`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
