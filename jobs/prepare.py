"""Entry point of `ray job submit -- python jobs/prepare.py ...`: the flags of `skinray prepare`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
