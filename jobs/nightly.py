"""Entry point of `ray job submit -- python jobs/nightly.py ...`: the flags of `skinray nightly`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["nightly", *sys.argv[1:]]))
