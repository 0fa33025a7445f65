"""The exit codes of `ibis-agent`, and their description in --help."""

from __future__ import annotations

OK, BUG, BAD_INPUT, BAD_MODEL, BAD_OUTPUT, PAUSED, DIFFERENT, SOME_FAILED = range(8)
INTERRUPTED, UNREAD = 130, 141

EXIT_CODES = """\
exit codes:
  0    done: the agent finished or reached a limit, or the person accepted, discarded or stopped
  1    an error in the program itself
  2    the command line, the scan, or another input cannot be used
  3    a model cannot be loaded, or failed
  4    the results cannot be written
  5    the agent paused: its reply could not be read twice; the results so far are kept
  6    replay: the masks differ from the recorded ones
  7    cohort: some scans failed; the others are done
  130  stopped by Ctrl-C, SIGTERM or SIGHUP; the steps so far are kept
  141  stopped because the output pipe was closed; the steps so far are kept

Research use only. Not a medical device."""
