"""Entry point of `ray job submit -- python jobs/audit.py ...`: the flags of `skinray audit`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
