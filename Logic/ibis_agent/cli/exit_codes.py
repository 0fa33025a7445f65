"""How `ibis-agent` ends, as numbers for scripts and as words for people."""

from __future__ import annotations

OK, BUG, BAD_INPUT, BAD_MODEL, BAD_OUTPUT, PAUSED, DIFFERENT, SOME_FAILED = range(8)
INTERRUPTED, UNREAD = 130, 141

EXIT_CODES = """\
exit codes:
  0    done: the agent ended, reached a limit, or the person accepted, discarded or stopped
  1    an error in this program itself
  2    the command line, the scan, or another input cannot be used
  3    a model cannot be loaded, or failed
  4    the results cannot be written
  5    the agent paused: its reply could not be read twice; what it did so far is kept
  6    replay: the masks differ from the recorded ones
  7    cohort: some scans could not be done; the others are
  130  stopped by Ctrl-C, SIGTERM or SIGHUP; what was done so far is kept
  141  stopped, since nobody reads what is printed any more; the steps so far are kept

Research use only. Not a medical device."""
