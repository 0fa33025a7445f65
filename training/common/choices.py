"""Command-line options for a Choice of pictures and structures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ibis_agent.errors import InputError
from ibis_agent.policy.card import load_card
from ibis_agent.scan.geometry import PLANES, Orientation
from ibis_agent.scan.picture import check_window

from training.common.pictures import Choice


def add_choice(parser: argparse.ArgumentParser) -> Any:
    """Add the options that `choice_of` reads. Returns their group, to add more."""
    group = parser.add_argument_group("which pictures and structures")
    which = group.add_argument
    which(
        "--planes",
        "--slice-axis",
        nargs="+",
        default=["axial"],
        choices=PLANES,
        metavar="PLANE",
        help=", ".join(PLANES),
    )
    which("--slices", "--slice-idx", default="shown", help='"shown", "all", or numbers such as 12,14,16')
    which("--every", type=int, default=1, help="use only every Nth of these slices")
    which("--per-plane", type=int, default=0, help="most slices per scan and plane, evenly spread; 0: all")
    which("--structures", nargs="+", default=[], help="names; default: all")
    which("--mask-value", type=int, nargs="+", default=[], help="label values to use; default: all")
    which("--least-area", type=float, default=0.001, help="smallest structure, as a share of the picture")
    which("--reverse-mask", action="store_true", help="in masks of pictures, black is the structure")
    which("--window-min", type=float, help="for all scans; default: the scan's own, or the agent's choice")
    which("--window-max", type=float)
    which("--orientation", choices=[each.value for each in Orientation])
    which("--card", type=Path, help="a policy folder, for its orientation, window and frame")
    which(
        "--store", type=Path, help="a folder that keeps the pictures for later commands, see training.store"
    )
    return group


def choice_of(args: argparse.Namespace) -> Choice:
    """The Choice given by the options. Raises InputError."""
    for name, low, high in (("every", 1, 10**6), ("per_plane", 0, 10**6), ("least_area", 0.0, 0.9)):
        value = getattr(args, name)
        if not low <= value <= high:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} must be from {low} to {high}", value=value)
    numbers = args.slices.split(",")
    if args.slices not in ("shown", "all") and not all(word.strip().isdigit() for word in numbers):
        raise InputError("--slices must be shown, all, or numbers such as 12,14", value=args.slices)
    window = card_window = None
    frame = Choice.frame
    orientation = Orientation.RADIOLOGICAL.value
    if args.card is not None:
        card = load_card(args.card)
        orientation, card_window, frame = card.orientation.value, card.window, card.frame
    if (args.window_min is None) != (args.window_max is None):
        raise InputError("a window needs both limits", remedy="Give --window-min and --window-max.")
    if args.window_min is not None:
        window = check_window((args.window_min, args.window_max))
    return Choice(
        planes=tuple(args.planes),
        slices=args.slices,
        every=args.every,
        per_plane=args.per_plane,
        structures=tuple(args.structures),
        mask_values=tuple(args.mask_value),
        least_area=args.least_area,
        orientation=args.orientation or orientation,
        window=window,
        reverse_mask=args.reverse_mask,
        card_window=card_window,
        frame=frame,
    )
