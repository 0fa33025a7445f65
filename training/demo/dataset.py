"""The phantom slices that the demo models are trained on, made once and kept on disk.

    python -m training.demo.dataset --count 7000 --out build/phantoms
    python -m training.demo.dataset --clips 400 --out build/clips   # neighbouring slices

Each slice is stored resized to a square grid (both models resize pictures anyway), as HU and one bit per structure,
with its aspect ratio. A stopped run resumes where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ibis_agent.errors import InputError
from ibis_agent.files import check_writable_folder
from PIL import Image
from tqdm import tqdm

from training.common.commands import RESUMABLE, command_parser, ending
from training.phantoms.phantom import EXTRAS, STRUCTURES, Z_RANGE, Anatomy, PhantomSlice, random_slice

SIDE = 192
NAMES = (*STRUCTURES, *EXTRAS)
ALIKE = ("spleen", "stomach")  # hard to tell from their neighbours
HARD = ("lesion", *ALIKE)  # or rare: trained on more often
TRAINING_SEEDS = 1_000_000_000  # evaluation uses smaller seeds, so the two share no phantom
CLIP_SEEDS = 2_000_000_000
FRAMES = 8


@dataclass
class Slices:
    """`hu` (N, SIDE, SIDE) int16 and `bits` (N, SIDE, SIDE) uint16, memory-mapped.

    Bit b of `bits` is NAMES[b]; `aspect` (N,) is width / height, `mirrored` (N,) bool.
    """

    hu: np.ndarray | Joined
    bits: np.ndarray | Joined
    aspect: np.ndarray
    mirrored: np.ndarray

    def __len__(self) -> int:
        return len(self.aspect)

    def mask(self, n: int, name: str) -> np.ndarray:
        """(SIDE, SIDE) bool."""
        return (self.bits[n] >> NAMES.index(name) & 1).astype(bool)


def _one(seed: int) -> tuple[np.ndarray, np.ndarray, float, bool]:
    return stored(random_slice(seed))


def stored(s: PhantomSlice, side: int = SIDE) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """A slice as stored: (side, side) int16 HU and uint16 bits, its width / height, whether it is mirrored."""
    height, width = s.hu.shape
    hu = np.asarray(Image.fromarray(s.hu).resize((side, side), Image.Resampling.BILINEAR))
    bits = np.zeros((side, side), np.uint16)
    for b, name in enumerate(NAMES):
        if s.masks[name].any():
            soft = Image.fromarray(s.masks[name].astype(np.float32)).resize(
                (side, side), Image.Resampling.BILINEAR
            )
            bits |= (np.asarray(soft) > 0.5).astype(np.uint16) << b
    return np.round(hu).astype(np.int16), bits, width / height, s.mirrored


def _clip_slice(number: int) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """Slice `number` of the clips: FRAMES neighbouring slices of one phantom, 2 to 8 mm apart."""
    clip, frame = divmod(number, FRAMES)
    seed = CLIP_SEEDS + clip
    r = np.random.default_rng([seed, 9])
    gap, margin, spacing = r.uniform(2, 8), tuple(r.uniform(0, 35, 4)), r.uniform(1.6, 2.6)
    start = r.uniform(Z_RANGE[0] - 10, Z_RANGE[1] - gap * (FRAMES - 1) + 10)
    return stored(Anatomy(seed).slice_at(start + gap * frame, spacing, margin))


def make(
    out: Path,
    count: int,
    workers: int = 2,
    one: Callable[..., tuple] = _one,
    first: int = TRAINING_SEEDS,
    side: int = SIDE,
) -> None:
    """Fill `out` with `count` slices, one(first), one(first + 1), … Raises InputError."""
    if count < 1 or workers < 1:
        raise InputError("slices and workers must be at least 1", value=(count, workers))
    check_writable_folder(out)
    done_file = out / "done.npy"
    fresh = not done_file.exists() or len(np.load(done_file)) != count

    def field(name: str, dtype: str, shape: tuple[int, ...]) -> np.memmap:
        path = out / f"{name}.npy"
        if fresh:
            return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        return np.lib.format.open_memmap(path, mode="r+")

    hu, bits = field("hu", "<i2", (count, side, side)), field("bits", "<u2", (count, side, side))
    aspect, mirrored = field("aspect", "<f4", (count,)), field("mirrored", "?", (count,))
    done = field("done", "?", (count,))
    todo = [n for n in range(count) if not done[n]]
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(one, [first + n for n in todo], chunksize=16)
        for n, result in tqdm(
            zip(todo, results, strict=True), total=len(todo), desc="phantoms", mininterval=5
        ):
            hu[n], bits[n], aspect[n], mirrored[n] = result
            done[n] = True


class Joined:
    """Arrays of several folders as one, indexed by a number, or by an array of numbers, which gives a stack."""

    def __init__(self, parts: Sequence[np.ndarray | Joined]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, which: int | np.ndarray) -> np.ndarray:
        if isinstance(which, np.ndarray):
            return np.stack([self[int(each)] for each in which])
        part = int(np.searchsorted(self._ends, which, "right"))
        return self._parts[part][int(which) - (int(self._ends[part - 1]) if part else 0)]


def load(*folders: Path) -> Slices:
    """The slices made so far in `folders`, all of the same size. Raises InputError if there are none."""
    each = [_load(folder) for folder in folders]
    if len(each) == 1:
        return each[0]
    return Slices(
        Joined([one.hu for one in each]),
        Joined([one.bits for one in each]),
        np.concatenate([one.aspect for one in each]),
        np.concatenate([one.mirrored for one in each]),
    )


def _load(folder: Path) -> Slices:
    if not (folder / "done.npy").is_file():
        raise InputError(
            "contains no slices", file=folder, remedy="Make them: python -m training.demo.dataset --help."
        )
    done = np.load(folder / "done.npy")
    count = len(done) if done.all() else int(np.argmin(done))
    fields = [
        np.load(folder / f"{n}.npy", mmap_mode="r")[:count] for n in ("hu", "bits", "aspect", "mirrored")
    ]
    return Slices(*fields)


def main() -> None:
    parser = command_parser("demo.dataset", __doc__)
    parser.add_argument("--count", type=int, default=7000)
    parser.add_argument(
        "--clips", type=int, help="number of clips of neighbouring slices, instead of single slices"
    )
    parser.add_argument("--out", type=Path, default=Path("build/phantoms"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with ending(RESUMABLE):
        if args.clips is not None:
            make(args.out, args.clips * FRAMES, args.workers, _clip_slice, 0)
        else:
            make(args.out, args.count, args.workers)


if __name__ == "__main__":
    main()
