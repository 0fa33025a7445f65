"""Time, disk and memory of the store, for synthetic volumes of 512 × 512 × 100 voxels with 20 labels.

    python -m training.bench.store --volumes 25 50 100 --out build/bench-store --json figures.json

Eight volumes are made; further ones are links to them, which are read and cut like any other. For each number, in its
own process: CPU time to fill an empty store (8 slices per volume) and to open the full one, its size on disk, and the
peak memory of the process. Files are read from the system's cache.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from ibis_agent.cases.cases import read_cases
from ibis_agent.errors import InputError
from ibis_agent.files import write_json

from training.common.commands import check_output, command_parser, ending
from training.common.pictures import Choice, groups_of
from training.common.processes import end_with_parent
from training.common.store import fill
from training.grpo.tasks import case_tasks

SHAPE, LABELS, DISTINCT = (512, 512, 100), 20, 8
CHOICE = Choice(per_plane=8)


def make_volume(folder: Path, number: int, shape: tuple[int, int, int] = SHAPE) -> None:
    """Write `vNNNN.nii` and its labels: ellipsoids in noise."""
    rng = np.random.default_rng(number)
    size = np.array(shape)
    labels = np.zeros(shape, np.uint8)
    for value in range(1, LABELS + 1):
        middle, radius = rng.uniform(0.15 * size, 0.85 * size), rng.uniform(0.025 * size, 0.12 * size)
        low = np.maximum(middle - radius, 0).astype(int)
        high = np.minimum(middle + radius + 1, size).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        places = np.ogrid[box]
        away = sum(((at - m) / r) ** 2 for at, m, r in zip(places, middle, radius, strict=True))
        labels[box][away < 1] = value
    voxels = (rng.standard_normal(shape, dtype=np.float32) * 20).astype(np.int16) + labels.astype(
        np.int16
    ) * 10
    affine = np.diag([-0.8, -0.8, 2.5, 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), folder / f"v{number:04d}.nii")
    nib.save(nib.Nifti1Image(labels, affine), folder / f"v{number:04d}_labels.nii")


def gather(made: Path, folder: Path, count: int) -> Path:
    """A folder of `count` volumes, as links to those in `made`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    distinct = len(list(made.glob("*_labels.nii")))
    for n in range(count):
        for suffix in (".nii", "_labels.nii"):
            os.link(made / f"v{n % distinct:04d}{suffix}", folder / f"p{n:05d}{suffix}")
    names = {str(value): f"structure {value}" for value in range(1, LABELS + 1)}
    write_json(folder / "labels.json", names)
    return folder


def measure(scans: Path, store: Path) -> dict[str, float]:
    """Fill an empty store and open it again. Call it in its own process, as it reports peak memory."""
    begun = time.process_time()
    pictures, _, _ = fill(groups_of(read_cases(scans)[0]), CHOICE, store)
    filled = time.process_time()
    tasks = case_tasks(scans, CHOICE, store)
    opened = time.process_time()
    assert len(tasks) == pictures, "the store has all pictures"
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    return {
        "pictures": pictures,
        "fill_s": filled - begun,
        "open_s": opened - filled,
        "store_mb": size / 2**20,
        "memory_mb": _most_memory() / 2**20,
    }


def _most_memory() -> int:
    """Peak memory of this process in bytes; psutil only has it on Windows."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def table(rows: list[dict[str, float]]) -> str:
    """The rows in Markdown."""
    text = "| volumes | pictures | fill, s | s per volume | open again, s | on disk, MB | memory, MB |\n"
    text += "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    for row in rows:
        each = row["fill_s"] / row["volumes"]
        text += f"| {row['volumes']} | {row['pictures']} | {row['fill_s']:.1f} | {each:.2f} | {row['open_s']:.2f} "
        text += f"| {row['store_mb']:.0f} | {row['memory_mb']:.0f} |\n"
    return text


def main() -> None:
    parser = command_parser("bench.store", __doc__)
    parser.add_argument("--volumes", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench-store"), help="a new folder, removed at the end"
    )
    parser.add_argument("--json", type=Path)
    with ending():
        args = parser.parse_args()
        check_output(args.json)
        if args.out.exists():
            raise InputError(
                "already exists", file=args.out, remedy="Choose a new folder: it is removed at the end."
            )
        made = args.out / "made"
        made.mkdir(parents=True)
        for number in range(min(DISTINCT, max(args.volumes))):
            make_volume(made, number)
        rows = []
        for count in args.volumes:
            scans, store = gather(made, args.out / "scans", count), args.out / "store"
            with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
                rows.append({"volumes": count, **pool.submit(measure, scans, store).result()})
            shutil.rmtree(store)
            print(json.dumps(rows[-1]), flush=True)
        shutil.rmtree(args.out)
        if args.json is not None:
            write_json(args.json, {"shape": SHAPE, "labels": LABELS, "rows": rows})
        print(table(rows))


if __name__ == "__main__":
    main()
