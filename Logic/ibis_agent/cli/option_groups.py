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
            "grey values shown as black and white, or of a CT by name: "
            f"{', '.join(sorted(PRESETS))} (default: the scan's own, the policy's card's, or the slice's 1st and "
            "99th percentile)"
        ),
    )
    group.add_argument(
        "--orientation",
        choices=[each.value for each in Orientation],
        help=("how the slice is turned (default: as the policy was trained)"),
    )
    add_modality(group)


def add_series(group: Any) -> None:
    group.add_argument(
        "--series",
        metavar="UID|NAME=VALUE",
        help="which series of a DICOM folder, and which of several images of each place, such as EchoTime=4.6; both "
        "with a comma between",
    )


def add_modality(group: Any) -> None:
    group.add_argument(
        "--modality",
        metavar="NAME",
        help="what the scan is, such as CT or MR (default: as its file says, or by its grey values)",
    )


def add_models(parser: Any) -> None:
    models = parser.add_argument_group("which models")
    models.add_argument(
        "--policy",
        type=place,
        metavar="DIR|URL",
        help="a policy's folder, or the address of a server such as http://localhost:8080/v1 (default: the demo "
        "policy); a server's key is read from IBIS_API_KEY",
    )
    add_server(models)
    add_segmenter(models)
    models.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "fp16", "fp8", "int4"],
        help=("of the policy (default: auto)"),
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
        help="yes, the slices and the question may be sent to the server on this other machine",
    )


def add_segmenter(group: Any) -> None:
    group.add_argument(
        "--segmenter",
        type=segmenter_place,
        metavar="FILE|nninteractive:URL",
        help="SAM2, SAM2.1 or MedSAM2 weights, or a server of nnInteractive (nninteractive:http://localhost:1527), "
        "whose published weights are CC BY-NC-SA: not for commercial use (default: the demo segmenter)",
    )
    group.add_argument(
        "--send-slices-to", metavar="HOST", help="yes, slices may go to this host of nnInteractive"
    )
    group.add_argument(
        "--segmenter-config", metavar="NAME|FILE", help="its architecture, where the weights do not tell"
    )
    group.add_argument(
        "--first-box",
        action="store_true",
        help="ask a first click a second time with a box around its mask, as MedSAM2 was trained",
    )
    group.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto)"
    )


def add_given(group: Any) -> None:
    """Masks to begin from or to stay out of, see given_masks; `group` is an argument group."""
    group.add_argument(
        "--start-mask",
        action="append",
        type=named_file,
        metavar="[NAME=]FILE",
        help="begin from this mask, which the policy sees and corrects: NIfTI, .nrrd, .seg.nrrd, or a picture; in a "
        "volume each slice begins from its own, and a mask on one slice is followed from there. Of several structures "
        "each begins from the label of its name; or NAME=FILE for each, such as liver=FILE",
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


def add_search(group: Any) -> None:
    group.add_argument(
        "--volume",
        action="store_true",
        help="find the object in the whole volume: a key slice, its neighbours, second looks",
    )
    group.add_argument(
        "--looks", type=int, metavar="N", help="second looks at doubtful slices, 0 for none (default: 4)"
    )
    group.add_argument(
        "--follow",
        choices=("auto", "memory", "linked", "carry"),
        help="from slice to slice by the segmenter's memory, or by a click and the mask carried on, without the "
        "islands that touch nothing of the slice before (linked) or with them (carry) (default: auto, memory "
        "where it was trained, else linked)",
    )


def add_turns(group: Any) -> None:
    group.add_argument("--max-turns", type=int, metavar="N", help="stop after so many turns (default: 20)")
    group.add_argument(
        "--max-repeats",
        type=int,
        metavar="N",
        help=("stop when the same action comes so many times in a row (default: 3)"),
    )
    group.add_argument(
        "--history",
        type=int,
        metavar="N",
        help=("how many earlier turns stay in the conversation, 0 for none (default: the policy's card)"),
    )


def add_mask_format(group: Any) -> None:
    formats = sorted(MASK_FORMATS)
    group.add_argument(
        "--mask-format",
        action="append",
        choices=formats,
        metavar="FORMAT",
        help=(f"{', '.join(formats)}; may be given several times (default: nii.gz, or png for a picture)"),
    )


def add_shown(group: Any) -> None:
    shown = group.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="print nothing but errors")
    shown.add_argument("--json", action="store_true", help="print one JSON object a line in place of text")
