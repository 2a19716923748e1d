"""Entry point of `python -m laennec` and `accelerate launch -m laennec`."""

import sys

from laennec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
