"""Questions → parquet files in verl's columns.

    python -m training.grpo.verl.rows build/trajectories --model policies/sft --out build/verl --held 0.05

Reads folders made by training.trajectories and writes OUT/train.parquet, OUT/test.parquet and the pictures. A row is
one question: verl samples whole episodes from it, so the expert's clicks, which the published rows contain, are not
needed. `ground_truth` is the true mask as run-length text. All questions about one scan are in the same split.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.errors import InputError, ModelError
from ibis_agent.files import atomic_write, check_writable_folder, write_bytes
from ibis_agent.mask.masks import decode_rle
from ibis_agent.policy.card import ModelCard, load_card
from ibis_agent.policy.messages import build_messages
from ibis_agent.policy.observation import Situation, observe
from PIL import Image

from training.common.commands import command_parser, ending
from training.common.policy_folder import check_picture_limits
from training.sft.turn_data import held_out, read_picture, scan_of
from training.trajectories.generate import read_trajectories

SOURCE, AGENT, ABILITY = "ibis-seg", "ibis_agent", "segmentation"


def checked_picture(folder: Path, sample: Any) -> np.ndarray:
    """(H, W, 3) uint8: a sample's picture. Raises InputError if it or its mask does not have the stated size."""
    rgb = read_picture(folder / sample["image"])
    shape = (int(sample["height"]), int(sample["width"]))
    if rgb.shape[:2] != shape:
        raise InputError("the picture has another size", file=folder / sample["image"], value=shape)
    decode_rle(sample["target_rle"], shape)
    return rgb


def row_of(
    sample: Any, rgb: np.ndarray, card: ModelCard, split: str, index: int, out: Path, max_turns: int
) -> dict[str, Any]:
    """One row. Also writes its picture to OUT/pictures, where the reward function finds it."""
    picture = _png(rgb)
    path = out / "pictures" / f"{hashlib.sha256(picture).hexdigest()[:16]}.png"
    if not path.is_file():
        check_writable_folder(path.parent)
        write_bytes(path, picture)
    messages = build_messages(card, observe(card, Situation(rgb, sample["question"])))
    return {
        "data_source": SOURCE,
        "agent_name": AGENT,
        "prompt": [
            {"role": m.role, "content": ("<image>" if m.picture is not None else "") + m.text}
            for m in messages
        ],
        "images": [{"bytes": picture}],
        "ability": ABILITY,
        "reward_model": {"style": "rule", "ground_truth": sample["target_rle"]},
        "extra_info": {
            "split": split,
            "index": index,
            "id": sample["id"],
            "question": sample["question"],
            "structure": sample["structure"],
            "height": int(sample["height"]),
            "width": int(sample["width"]),
            "picture": os.path.abspath(path),
            "max_turns": max_turns,
            "language": card.language,
        },
    }


def write(
    folders: Sequence[Path], model: Path, out: Path, held: float = 0.05, max_turns: int = 8
) -> dict[str, int]:
    """Write both files and return their numbers of rows. Raises InputError, OutputError; ModelError without pyarrow."""
    card = load_card(model)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ModelError("parquet files need pyarrow", remedy="pip install pyarrow.") from error
    check_writable_folder(out)
    scans = {
        scan_of(folder, each): str(each["id"]) for folder in folders for each in read_trajectories(folder)
    }
    aside = held_out(scans, held, model)
    made: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for folder in folders:
        for sample in read_trajectories(folder):
            split = "test" if scan_of(folder, sample) in aside else "train"
            rgb = checked_picture(folder, sample)
            made[split].append(row_of(sample, rgb, card, split, len(made[split]), out, max_turns))
    for split, listed in made.items():
        if not listed and (split == "train" or held):
            remedy = "Give at least two scans." if held else None
            raise InputError(f"no question is left for {split}.parquet", file=folders[0], remedy=remedy)
    for split, listed in made.items():
        if listed:
            with atomic_write(out / f"{split}.parquet") as path:
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(listed), path)
    return {split: len(listed) for split, listed in made.items()}


def _png(rgb: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "PNG")
    return stream.getvalue()


def main() -> None:
    parser = command_parser("grpo.verl.rows", __doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="made by training.trajectories")
    parser.add_argument("--model", type=Path, required=True, help="the policy's folder, for its prompts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held", type=float, default=0.05, help="share of the scans for test.parquet")
    parser.add_argument("--max-turns", type=int, default=8)
    args = parser.parse_args()
    with ending():
        if not 0 <= args.held < 1 or args.max_turns < 1:
            raise InputError("--held must be at least 0 and below 1, and --max-turns at least 1")
        check_picture_limits(load_card(args.model), args.model)
        counts = write(args.folders, args.model, args.out, args.held, args.max_turns)
    print(", ".join(f"{split}: {count} questions" for split, count in counts.items()))


if __name__ == "__main__":
    main()
