"""Entry point of `ray job submit -- python jobs/score.py ...`: the flags of `skinray score`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
