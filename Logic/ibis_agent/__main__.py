"""The command `ibis-agent`, also as `python -m ibis_agent`: Ctrl-C ends it without a traceback from the start."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line. Returns the exit code."""
    try:
        from ibis_agent.cli.commands import main as command
    except KeyboardInterrupt:
        print("ibis-agent: stopped; nothing was written", file=sys.stderr)
        return 130  # cli.options.INTERRUPTED, which may not have been read yet
    return command()


if __name__ == "__main__":
    sys.exit(main())
