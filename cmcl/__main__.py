"""`python -m cmcl`: the command line."""

import sys

from cmcl.cli import main

if __name__ == "__main__":
    sys.exit(main())
