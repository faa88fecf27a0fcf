"""Entry point of `ray job submit -- python jobs/verify.py ...`: the flags of `skinray verify`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
