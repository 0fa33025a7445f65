"""The command `ibis-agent`, also as `python -m ibis_agent`: Ctrl-C never causes a traceback."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line. Returns the exit code."""
    try:
        from ibis_agent.cli.start import options_of

        # --help and an invalid command end here, before the imports that a run needs.
        options = options_of(None)
        from ibis_agent.cli.commands import act
    except KeyboardInterrupt:
        print("ibis-agent: stopped; nothing was written", file=sys.stderr)
        return 130  # cli.options.INTERRUPTED, which may not have been read yet
    return act(options)


if __name__ == "__main__":
    sys.exit(main())
