"""Groups of options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ibis_agent.cli.chosen_policy import place, segmenter_place
from ibis_agent.cli.given_masks import named_file
from ibis_agent.mask import MASK_FORMATS
from ibis_agent.scan.geometry import PLANES, Orientation
from ibis_agent.scan.windows import PRESETS


def add_cut(group: Any) -> None:
    group.add_argument(
        "--plane", choices=PLANES, metavar="PLANE", help=f"{', '.join(PLANES)} (default: axial)"
    )
    group.add_argument(
        "--window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help=(
            "grey values shown as black and white, or for CT a name: "
            f"{', '.join(sorted(PRESETS))} (default: the scan's own, the policy's card's, or the slice's 1st and "
            "99th percentile)"
        ),
    )
    group.add_argument(
        "--orientation",
        choices=[each.value for each in Orientation],
        help="orientation of the slice (default: as the policy was trained)",
    )
    add_modality(group)


def add_series(group: Any) -> None:
    group.add_argument(
        "--series",
        metavar="UID|NAME=VALUE",
        help="which series of a DICOM folder, or which of several images at each position, such as EchoTime=4.6; "
        "separate both with a comma",
    )


def add_modality(group: Any) -> None:
    group.add_argument(
        "--modality",
        metavar="NAME",
        help="modality of the scan, such as CT or MR (default: from the file, or guessed from the grey values)",
    )


def add_models(parser: Any) -> None:
    models = parser.add_argument_group("models")
    models.add_argument(
        "--policy",
        type=place,
        metavar="DIR|URL",
        help="a policy's folder, or the address of a server such as http://localhost:8080/v1 (default: the demo "
        "policy); the API key is read from IBIS_API_KEY",
    )
    add_server(models)
    add_segmenter(models)
    models.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "fp16", "fp8", "int4"],
        help="precision of the policy's weights (default: auto)",
    )


def add_server(group: Any) -> None:
    group.add_argument("--model", metavar="NAME", help="the policy's name on the server")
    group.add_argument(
        "--card",
        type=Path,
        metavar="DIR|FILE",
        help="the card of a policy on a server (default: the published settings)",
    )
    group.add_argument(
        "--send-pictures-to",
        metavar="HOST",
        help="agree to send the slices and the question to the policy's server on this host",
    )


def add_segmenter(group: Any) -> None:
    group.add_argument(
        "--segmenter",
        type=segmenter_place,
        metavar="FILE|nninteractive:URL",
        help="SAM2, SAM2.1 or MedSAM2 weights, or an nnInteractive server (nninteractive:http://localhost:1527), "
        "whose published weights are CC BY-NC-SA: not for commercial use (default: the demo segmenter)",
    )
    add_sent_slices(group)
    group.add_argument(
        "--segmenter-config",
        metavar="NAME|FILE",
        help="its architecture, if it cannot be recognised from the weights",
    )
    group.add_argument(
        "--first-box",
        action="store_true",
        help="after the first click, predict again with a box around its mask, as MedSAM2 was trained",
    )
    group.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto)"
    )


def add_sent_slices(group: Any) -> None:
    group.add_argument(
        "--send-slices-to", metavar="HOST", help="agree to send slices to nnInteractive on this host"
    )


def add_given(group: Any) -> None:
    """Masks to start from or to exclude, see given_masks; `group` is an argument group."""
    group.add_argument(
        "--start-mask",
        action="append",
        type=named_file,
        metavar="[NAME=]FILE",
        help="start from this mask, which the policy sees and corrects: NIfTI, .nrrd, .seg.nrrd, or a picture; in a "
        "volume, each slice starts from its own mask, and a mask on a single slice is propagated from there. With "
        "several structures, each starts from the label with its name, or give NAME=FILE for each, such as liver=FILE",
    )
    group.add_argument(
        "--start-label", metavar="NAME|N", help="segment or label of this mask, if there are several"
    )
    group.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="the mask never enters these voxels; if it is the file of --start-mask, all other labels are excluded",
    )
    group.add_argument(
        "--exclude-label", action="append", metavar="NAME|N", help="exclude only this label; may be repeated"
    )


def add_search(group: Any) -> None:
    group.add_argument(
        "--volume",
        action="store_true",
        help="segment the whole volume: find a key slice, propagate, look again at doubtful slices",
    )
    group.add_argument(
        "--looks",
        type=int,
        metavar="N",
        help="how many times to look again at doubtful slices, 0 for never (default: 4)",
    )
    group.add_argument(
        "--follow",
        choices=("auto", "memory", "linked", "carry"),
        help="how to propagate from slice to slice: memory: with the segmenter's memory; carry: with a click and the "
        "mask of the previous slice; linked: like carry, but without islands that do not touch the previous slice's "
        "mask (default: auto, which is memory if it was trained, otherwise linked)",
    )


def add_turns(group: Any) -> None:
    group.add_argument("--max-turns", type=int, metavar="N", help="stop after this many turns (default: 20)")
    group.add_argument(
        "--max-repeats",
        type=int,
        metavar="N",
        help="stop when the same action is repeated this many times in a row (default: 3)",
    )
    group.add_argument(
        "--history",
        type=int,
        metavar="N",
        help="how many earlier turns stay in the conversation, 0 for none (default: the policy's card)",
    )


def add_mask_format(group: Any) -> None:
    formats = sorted(MASK_FORMATS)
    group.add_argument(
        "--mask-format",
        action="append",
        choices=formats,
        metavar="FORMAT",
        help=f"{', '.join(formats)}; may be given several times (default: nii.gz, or png for a picture)",
    )


def add_shown(group: Any) -> None:
    shown = group.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="print nothing but errors")
    shown.add_argument("--json", action="store_true", help="print one JSON object per line instead of text")
