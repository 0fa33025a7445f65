"""More varied training pictures for the demo models: random phantoms, and deformations of one real patient.

python -m training.demo.world --count 6000 --patient SCAN.nii.gz --out build/patient
python -m training.demo.world --count 3000 --out build/wide      # phantoms alone
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from ibis_agent.errors import InputError
from ibis_agent.scan.frame import find_frame

from training.common.commands import RESUMABLE, command_parser, ending
from training.demo.dataset import CLIP_SEEDS, FRAMES, make, stored
from training.phantoms.patient import SIDE, Patient
from training.phantoms.phantom import random_slice
from training.phantoms.shapes import PhantomSlice

WORLD_SEEDS = 3_000_000_000


@functools.lru_cache(1)
def _patient(scan: str) -> Patient:
    path = Path(scan)
    stem = path.name.split(".nii")[0]
    labels = path.with_name(stem + "_labels.nii.gz")
    return Patient.load(path, labels, path.with_name(stem + "_labels.json"))


def _deformed(seed: int, scan: str, held: bool) -> tuple[np.ndarray, np.ndarray, float, bool]:
    hu, bits, aspect, _ = _patient(scan).picture(seed, held=held)
    return np.round(hu).astype(np.int16), bits, aspect, False


def _deformed_clip(number: int, scan: str) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """Slice `number` of the clips: FRAMES neighbouring slices of one deformed body, 2 to 8 mm apart."""
    clip, frame = divmod(number, FRAMES)
    patient = _patient(scan)
    gap = np.random.default_rng([clip, 9]).uniform(2, 8) / patient.step
    hu, bits, aspect, _ = patient.picture(CLIP_SEEDS + clip, above=gap * (frame + 0.5))
    return np.round(hu).astype(np.int16), bits, aspect, False


def _wide(seed: int) -> tuple[np.ndarray, np.ndarray, float, bool]:
    from training.phantoms.wide import wide_slice

    hu, bits, aspect, _ = wide_slice(seed)
    return np.round(hu).astype(np.int16), bits, aspect, False


def _plain(seed: int) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """A phantom of training.phantoms, cropped to the frame that the models see."""
    made = random_slice(seed, mirrored=False)
    frame = find_frame(made.hu, made.spacing)
    inside = {name: frame.crop(mask) for name, mask in made.masks.items()}
    return stored(PhantomSlice(frame.crop(made.hu), inside, made.spacing, made.z), SIDE)


def main() -> None:
    parser = command_parser("demo.world", __doc__)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--patient", type=Path, help="a labelled CT to deform, instead of phantoms")
    parser.add_argument(
        "--clips",
        type=int,
        help="number of clips of neighbouring slices of the patient, instead of single slices",
    )
    parser.add_argument(
        "--plain", action="store_true", help="the phantoms of training.phantoms, cropped to the frame"
    )
    parser.add_argument("--held", action="store_true", help="use the levels held out for evaluation")
    parser.add_argument("--out", type=Path, default=Path("build/world"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--first", type=int, default=WORLD_SEEDS)
    args = parser.parse_args()
    if args.clips is not None and not args.patient:
        raise InputError("clips are made from a patient", remedy="Give --patient.")
    one = functools.partial(_deformed, scan=str(args.patient), held=args.held) if args.patient else _wide
    if args.plain:
        one = _plain
    with ending(RESUMABLE):
        if args.clips is not None:
            one = functools.partial(_deformed_clip, scan=str(args.patient))
            make(args.out, args.clips * FRAMES, args.workers, one, 0, SIDE)
            return
        make(args.out, args.count, args.workers, one, args.first, SIDE)


if __name__ == "__main__":
    main()
