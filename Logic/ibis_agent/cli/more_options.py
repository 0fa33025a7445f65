"""Options of `compare`, of `mcp` and of given masks. The rooms that work with them import what `--help` need not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_given(group: Any) -> None:
    """Masks to begin from or to stay out of, see given_masks; `group` is an argument group."""
    group.add_argument(
        "--start-mask",
        type=Path,
        metavar="FILE",
        help="begin from this mask, which the policy sees and corrects: NIfTI, .nrrd, .seg.nrrd, or a picture; in a "
        "volume each slice begins from its own, and a mask on one slice is followed from there",
    )
    group.add_argument(
        "--start-label", metavar="NAME|N", help="the segment or the label of it, where it has several"
    )
    group.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="the mask never enters what is marked here; of the file of --start-mask, all other labels",
    )
    group.add_argument(
        "--exclude-label", action="append", metavar="NAME|N", help="only this label of it; may be repeated"
    )


def add_compare(commands: Any) -> None:
    """The subcommand `compare`, see there."""
    found = commands.add_parser(
        "compare",
        help="two runs, or a run and a reference mask: Dice, HD95, volumes, a page side by side",
        description="Compare two masks of one scan. Each is a run's folder, its trajectory.json, or a mask file.",
    )
    found.add_argument("a", type=Path, metavar="A", help="a run, or a mask file")
    found.add_argument("b", type=Path, metavar="B", help="a run, or a mask file such as the reference")
    found.add_argument(
        "--label", type=int, metavar="N", help="only this value of mask files (default: all but zero)"
    )
    found.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: comparison.html beside the run)"
    )
    found.add_argument("--no-page", action="store_true", help="print the figures alone")
    found.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    found.add_argument("--open", action="store_true", help="show the page in the browser")


def add_mcp(commands: Any, add_models: Callable[[Any], None]) -> None:
    """The subcommand `mcp`, see tool_server."""
    made = commands.add_parser(
        "mcp",
        help="tools for other agents over the Model Context Protocol",
        description="Serve questions to scans as typed tools on standard input and output.",
    )
    made.add_argument("--scans", type=Path, metavar="DIR", required=True, help="where scans are read from")
    made.add_argument("--out", type=Path, metavar="DIR", required=True, help="where results are written to")
    add_models(made)
