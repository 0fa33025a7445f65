"""Loads an export with LLaMA-Factory's own loader; run by the Python of that package's environment.

    PYTHON llamafactory_loader.py EXPORT POLICY OUT.npz

OUT.npz gets ids{n}, labels{n} and pixels{n} of every sample that the loader keeps, and their count. Nothing of
this project is imported. torchaudio, which the package imports for sound, may be missing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import numpy as np


def main(export: Path, policy: Path, out: Path) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", DISABLE_VERSION_CHECK="1")
    if importlib.util.find_spec("torchaudio") is None:
        stand_in = types.ModuleType("torchaudio")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = stand_in
    import transformers
    import yaml
    from llamafactory.data.loader import get_dataset
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model.patcher import patch_processor

    recipe = yaml.safe_load((export / "sft.yaml").read_text("utf-8"))
    recipe |= {"output_dir": str(out.parent / "unused"), "preprocessing_num_workers": None, "bf16": False}
    model_args, data_args, training_args, _, _ = get_train_args(recipe)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(policy / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    settings = json.loads((policy / "preprocessor_config.json").read_text("utf-8"))
    kind = getattr(transformers, "Qwen2VLImageProcessorPil", None) or transformers.Qwen2VLImageProcessor
    pictures = kind(min_pixels=settings["min_pixels"], max_pixels=settings["max_pixels"])
    processor = types.SimpleNamespace(image_processor=pictures, tokenizer=tokenizer)
    patch_processor(processor, tokenizer, model_args)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    found = get_dataset(
        template, model_args, data_args, training_args, stage="sft", tokenizer=tokenizer, processor=processor
    )["train_dataset"]
    arrays = {"count": np.array(len(found))}
    for n, sample in enumerate(found):
        arrays[f"ids{n}"] = np.array(sample["input_ids"])
        arrays[f"labels{n}"] = np.array(sample["labels"])
        shown = len(sample["images"])
        inputs = template.mm_plugin.get_mm_inputs(
            sample["images"], [], [], [shown], [0], [0], [sample["input_ids"]], processor
        )
        arrays[f"pixels{n}"] = np.asarray(inputs["pixel_values"])
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
