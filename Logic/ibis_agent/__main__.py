"""`python -m ibis_agent` is the command ibis-agent."""

import sys

from .cli import main

sys.exit(main())
