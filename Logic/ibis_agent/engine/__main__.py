"""`python -m ibis_agent.engine`: the worker process, see process."""

import sys

from ibis_agent.engine.process import main

if __name__ == "__main__":
    sys.exit(main())
