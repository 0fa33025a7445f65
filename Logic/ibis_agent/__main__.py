"""`python -m ibis_agent` is the command `ibis-agent`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
