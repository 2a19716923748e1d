"""`python -m laennec`, and so `accelerate launch -m laennec`."""

import sys

from laennec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
