"""A folder's own processor: pictures and conversation → input of its network, also without torchvision.

transformers' AutoProcessor needs torchvision for families that also take videos. Without it the processor is assembled
from the tokenizer and the PIL image processor.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ibis_agent.errors import ModelError
from ibis_agent.policy.folder import read_json
from ibis_agent.policy.language import TAG
from ibis_agent.policy.messages import Message


class Conversations:
    """Conversations in the format of one model family."""

    def __init__(self, processor: Any, tokenizer: Any, folder: Path) -> None:
        self.tokenizer = tokenizer
        self._processor, self._folder = processor, folder
        control = {str(each) for each in tokenizer.get_added_vocab()} | set(tokenizer.all_special_tokens)
        self._special = sorted((each for each in control if not TAG.fullmatch(each)), key=len, reverse=True)

    @classmethod
    def load(cls, folder: Path, model_type: str) -> Conversations:
        """Load a folder's processor. Raises ModelError."""
        processor = load_processor(folder, model_type)
        found = cls(processor, getattr(processor, "tokenizer", processor), folder)
        if not (getattr(processor, "chat_template", None) or getattr(found.tokenizer, "chat_template", None)):
            raise ModelError(
                "has no chat template",
                file=folder,
                remedy="Copy chat_template.jinja from the model that this one was fine-tuned from.",
            )
        return found

    def encode(self, messages: Sequence[Message], pictures: Sequence[np.ndarray]) -> Any:
        """A batch of one, up to the start of the reply. Raises ModelError."""
        try:
            text = self._written(messages)
            images = [Image.fromarray(pictures[m.picture]) for m in messages if m.picture is not None]
            return self._processor(text=[text], images=[images], return_tensors="pt")
        except ModelError:
            raise
        except Exception as error:  # processors raise many kinds of exceptions
            raise ModelError(
                "the folder's processor cannot create a request",
                file=self._folder,
                value=f"{type(error).__name__}: {error}"[:200],
                remedy="Copy the processor's files from the model that this one was fine-tuned from.",
            ) from error

    def plain(self, text: str) -> str:
        """`text` with control tokens broken up, so that a user's text cannot act as one.

        Tags of action languages stay: prompts and earlier replies contain them.
        """
        for token in self._special:
            if token.strip() and token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _written(self, messages: Sequence[Message]) -> str:
        told = [
            {
                "role": message.role,
                "content": [
                    *([{"type": "image"}] if message.picture is not None else []),
                    {"type": "text", "text": self.plain(message.text)},
                ],
            }
            for message in messages
        ]
        try:
            return self._templated(told)
        except Exception:  # no system role in the template: the system message goes before the first question
            if not told or told[0]["role"] != "system":
                raise
            system, first, *rest = told
            text: Any = first["content"][-1]
            joined = {"type": "text", "text": f"{system['content'][0]['text']}\n\n{text['text']}"}  # type: ignore[index]
            return self._templated([{**first, "content": [*first["content"][:-1], joined]}, *rest])

    def _templated(self, told: list[dict[str, Any]]) -> str:
        return str(self._processor.apply_chat_template(told, add_generation_prompt=True, tokenize=False))


def load_processor(folder: Path, model_type: str) -> Any:
    """A folder's processor, without downloads and without running the folder's code. Raises ModelError."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as whole:  # without torchvision: many kinds of exceptions
        try:
            return _from_parts(folder, model_type)
        except Exception as error:
            raise ModelError(
                "the folder's processor cannot be loaded",
                file=folder,
                value=f"{type(error).__name__}: {error}"[:200],
                remedy="Copy its files from the original model, or run it on a server and choose that as the "
                "policy.",
            ) from whole


def _from_parts(folder: Path, model_type: str) -> Any:
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    options = {"local_files_only": True, "trust_remote_code": False}
    names: Any = IMAGE_PROCESSOR_MAPPING_NAMES[model_type]
    images = getattr(transformers, names["pil"]).from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    family: Any = getattr(transformers, str(PROCESSOR_MAPPING_NAMES[model_type]))

    class WithoutVideos(family):
        """The family's processor without its video part."""

        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return (
                None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)
            )

    taken = inspect.signature(family.__init__).parameters
    file = folder / "processor_config.json"
    settings = read_json(file) if file.is_file() else {}
    parts = {"image_processor": images, "tokenizer": tokenizer}
    if "video_processor" in taken:
        parts["video_processor"] = _NoVideos()
    given = {key: settings[key] for key in settings if key in taken and key not in parts}
    given.setdefault("chat_template", tokenizer.chat_template or _template(folder))
    return WithoutVideos(**parts, **given)


class _NoVideos:
    """A placeholder for the video processor."""

    model_input_names: tuple[str, ...] = ()
    merge_size, temporal_patch_size = 2, 2


def _template(folder: Path) -> str | None:
    jinja, values = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    return read_json(values).get("chat_template") if values.is_file() else None
