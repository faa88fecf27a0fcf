"""Entry point of `ray job submit -- python jobs/search.py ...`: the flags of `skinray search`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
