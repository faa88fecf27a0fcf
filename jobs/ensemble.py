"""Entry point of `ray job submit -- python jobs/ensemble.py ...`: the flags of `skinray ensemble`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["ensemble", *sys.argv[1:]]))
