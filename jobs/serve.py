"""Entry point of `ray job submit -- python jobs/serve.py ...`: the flags of `skinray serve`."""

import sys

from skinray.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
