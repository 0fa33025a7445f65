"""Messages and pictures → tokens and pixels for Qwen2.5-VL, in its ChatML format.

Equal to transformers' processor for this family, which needs torchvision. Training samples and inference requests both
come from `Chat.encode`.

Control tokens written out in a message, such as `<|im_end|>` or `<|image_pad|>`, stay plain text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import ModelError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.folder import read_json, tokenizer_files
from ibis_agent.policy.messages import Message
from ibis_agent.policy.qwen25.pictures import PictureProcessor, load_processor
from ibis_agent.policy.training_contract import Encoded

START, END, PICTURE = "<|im_start|>", "<|im_end|>", "<|image_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
_CONTROL = (START, END, PICTURE, VISION_START, VISION_END)
# Qwen2's control tokens in the order of their ids, which follow the vocabulary.
_QWEN_TOKENS = (
    *("<|endoftext|>", START, END, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", VISION_START, VISION_END, "<|vision_pad|>"),
    *(PICTURE, "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
# How text is split before byte pairs are merged: contractions, words, single digits, punctuation, white space.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen's template without a system message.
_SYSTEM = "You are a helpful assistant."


class Chat:
    """A folder's tokenizer and picture processor. See training_contract.Chat."""

    def __init__(self, tokenizer: Any, pictures: PictureProcessor, stops: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.pictures = pictures
        self.stops = stops
        """Tokens that end a reply."""
        self._merge = pictures.merge_size
        self._token = {text: tokenizer.token_to_id(text) for text in _CONTROL}

    @classmethod
    def load(cls, folder: str | os.PathLike[str], card: ModelCard | None = None) -> Chat:
        """Read tokenizer and picture settings from a policy's folder. Raises ModelError."""
        folder = Path(folder)
        config = read_json(folder / "config.json")
        files = tokenizer_files(folder)
        tokenizer = _load_tokenizer(folder, files)
        for text in _CONTROL:
            if tokenizer.token_to_id(text) is None:
                raise ModelError(
                    f"the tokenizer has no {text}",
                    file=files[0],
                    remedy="Use the tokenizer of a Qwen2.5-VL model.",
                )
        picture = tokenizer.token_to_id(PICTURE)
        if config.get("image_token_id", picture) != picture:
            raise ModelError(
                "tokenizer and configuration disagree on the picture's token",
                file=folder / "config.json",
                value=f"{config['image_token_id']} and {picture}",
                remedy="Use those of the same model.",
            )
        vision = config.get("vision_config") or {}
        processor = load_processor(folder, vision, card or ModelCard())
        return cls(tokenizer, processor, _stops(folder, config, tokenizer))

    @property
    def picture_token(self) -> int:
        """The token that stands for a part of a picture."""
        return self._token[PICTURE]

    def encode(
        self, messages: Sequence[Message], pictures: Sequence[np.ndarray], reply: str | None = None
    ) -> Encoded:
        """A conversation up to the start of the reply, or with the reply for training.

        pictures: (H, W, 3) uint8. Raises InputError for a picture that the processor refuses.
        """
        pixels, grid = self._pixels(pictures)
        ids, parts = self.conversation(messages, grid.prod(axis=1) // self._merge**2)
        learn = [False] * len(ids)
        if reply is not None:
            body = self.reply_tokens(reply)
            ids += body
            learn += [True] * len(body)
            parts.append(len(ids))
        array = np.asarray(ids, dtype=np.int64)
        types = (array == self._token[PICTURE]).astype(np.int64)
        positions = rotary_positions(types, grid, self._merge)
        return Encoded(array, np.asarray(learn), pixels, grid, types, positions, tuple(parts))

    def length(self, messages: Sequence[Message], sizes: Sequence[tuple[int, int]]) -> int:
        """The number of tokens that `encode` gives for pictures of these (height, width)."""
        patches = [self.pictures.patches_of(*size) for size in sizes]
        return len(self.conversation(messages, [each // self._merge**2 for each in patches])[0])

    def as_seen(self, picture: np.ndarray) -> np.ndarray:
        """An (H, W, 3) uint8 picture in the size that the policy sees: (h, w, 3) uint8."""
        return self.pictures.scaled(picture)

    def reply_tokens(self, reply: str) -> list[int]:
        """The tokens of a reply, with its end token."""
        return [*self._text(reply), self._token[END]]

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens → text, without control tokens. An incomplete last character becomes U+FFFD."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def conversation(
        self, messages: Sequence[Message], counts: Sequence[int] | np.ndarray
    ) -> tuple[list[int], list[int]]:
        """(tokens up to the start of the reply, ends of its parts, see Encoded.parts).

        counts: number of tokens of each picture.
        """
        ids: list[int] = []
        parts: list[int] = []
        opening = [self._token[START], *self._text("assistant\n")]
        if not messages or messages[0].role != "system":
            messages = [Message("system", _SYSTEM), *messages]
        for message in messages:
            ids.append(self._token[START])
            if message.picture is not None:
                body = [self._token[PICTURE]] * int(counts[message.picture])
                ids += [
                    *self._text(message.role + "\n"),
                    self._token[VISION_START],
                    *body,
                    self._token[VISION_END],
                ]
                ids += self._text(message.text)
            elif message.role == "assistant":
                # Tokenised separately from the opening, as when it was generated.
                ids += [*self._text("assistant\n"), *self._text(message.text)]
            else:
                ids += self._text(f"{message.role}\n{message.text}")
            ids += [self._token[END], *self._text("\n")]
            if message.role != "assistant":
                # The opening of the reply is the same for every reply, so it belongs to the question.
                parts.append(len(ids) + (len(opening) if message.role == "user" else 0))
        return ids + opening, parts

    def _text(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _pixels(self, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        found = [self.pictures.patches(picture) for picture in pictures]
        width = 3 * self.pictures.temporal_patch_size * self.pictures.patch_size**2
        pixels = [each for each, _ in found] or [np.zeros((0, width), np.float32)]
        grid = np.array([each for _, each in found], np.int64).reshape(-1, 3)
        return np.concatenate(pixels), grid


def rotary_positions(types: np.ndarray, grid: np.ndarray, merge: int) -> np.ndarray:
    """(3, L) int64 positions in time, row and column, for Qwen2.5-VL's multimodal rotary embedding.

    Text tokens count up by one in all three. A picture's tokens have their row and column on its grid of `merge` ×
    `merge` patches; the text after it continues beyond its longer side. types: (L,), 1 for picture tokens. grid: (n, 3)
    in patches. Source: Qwen2-VL technical report, section 2.1.
    """
    positions = np.zeros((3, len(types)), np.int64)
    start, reached, picture = 0, 0, 0
    while start < len(types):
        if not types[start]:
            stop = start + int(np.argmax(np.append(types[start:], 1)))
            positions[:, start:stop] = reached + np.arange(stop - start)
            reached += stop - start
        else:
            rows, columns = (int(side) // merge for side in grid[picture, 1:])
            stop = start + rows * columns
            positions[0, start:stop] = reached
            positions[1, start:stop] = reached + np.repeat(np.arange(rows), columns)
            positions[2, start:stop] = reached + np.tile(np.arange(columns), rows)
            reached += max(rows, columns)
            picture += 1
        start = stop
    return positions


def _load_tokenizer(folder: Path, files: Sequence[Path]) -> Any:
    from tokenizers import Tokenizer

    try:
        if len(files) == 1:
            values = read_json(files[0])
            for token in values.get("added_tokens") or []:
                # Some exports lose this flag; without it, control tokens in a user's text would take effect.
                if isinstance(token, dict) and str(token.get("content", "")).startswith("<|"):
                    token["special"] = True
            tokenizer = Tokenizer.from_str(json.dumps(values))
        else:
            tokenizer = _tokenizer_of_parts(folder, *files)
    except ModelError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise ModelError(
            f"the tokenizer cannot be read: {error}",
            file=files[0],
            remedy="Copy it again from the original model.",
        ) from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _tokenizer_of_parts(folder: Path, vocabulary: Path, merges: Path) -> Any:
    """Qwen2's tokenizer from its older files: byte-level BPE and control tokens.

    The ids of the control tokens are in added_tokens.json or tokenizer_config.json, or follow the vocabulary in Qwen's
    order.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    pairs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pairs])
    tokenizer.decoder = decoders.ByteLevel()
    numbers = {text: int(n) for text, n in _optional(folder / "added_tokens.json").items()}
    for n, token in (_optional(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}).items():
        numbers.setdefault(token["content"], int(n))
    for text in sorted(numbers, key=lambda each: numbers[each]) or _QWEN_TOKENS:
        special = text.startswith("<|")
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False)])
        if tokenizer.token_to_id(text) != numbers.get(text, tokenizer.token_to_id(text)):
            raise ModelError(
                "the ids of the control tokens do not follow the vocabulary",
                file=folder,
                value=f"{text} {numbers[text]}",
                remedy="Copy tokenizer.json from the original model.",
            )
    tokenizer.add_special_tokens([text for text in _CONTROL if tokenizer.token_to_id(text) is not None])
    return tokenizer


def _stops(folder: Path, config: dict[str, Any], tokenizer: Any) -> frozenset[int]:
    stops = {tokenizer.token_to_id(END)}
    for values in (config, config.get("text_config") or {}, _optional(folder / "generation_config.json")):
        ids = values.get("eos_token_id")
        stops.update(ids if isinstance(ids, list) else [ids])
    return frozenset(each for each in stops if isinstance(each, int))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
