"""Entry point of `ray job submit -- python jobs/cross_validate.py ...`: the flags of `skinray cross-validate`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["cross-validate", *sys.argv[1:]]))
