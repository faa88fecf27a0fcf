"""Entry point of `ray job submit -- python jobs/train.py ...`: the flags of `skinray train`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
