"""Entry point of `ray job submit -- python jobs/report.py ...`: the flags of `skinray report`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
