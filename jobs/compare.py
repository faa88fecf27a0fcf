"""Entry point of `ray job submit -- python jobs/compare.py ...`: the flags of `skinray compare`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
