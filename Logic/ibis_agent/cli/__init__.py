"""The command `ibis-agent`."""
