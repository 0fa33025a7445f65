"""The token loop: one encoded request → text, greedily, as fast as plain torch allows.

Faster than transformers' `generate` and equal to it token by token, because it
- keeps the keys and values of what the last requests began with (the system message; with a history, the
  turns before) and the features of the last pictures;
- stops at the token that completes the action;
- always passes a block of the same few tokens through the model: the last one and a guess of what follows
  (guesses), and keeps those that greedy choice confirms.

A block has one size, whatever was guessed, and the conversation is always computed in the same parts
(Encoded.parts), whether they were kept or not: the same request gives the same text whatever was asked before
it. Going back in an episode is exact.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ibis_agent.errors import Cancelled
from ibis_agent.policy.qwen25.block import Blocks
from ibis_agent.policy.qwen25.choice import BROKEN, Chooser, Generation
from ibis_agent.policy.qwen25.guesses import Guesses
from ibis_agent.policy.qwen25.network import Memory, Network, rounds_of
from ibis_agent.policy.teaching import Encoded

_KEPT_PICTURES = 4
# Text that ends inside a letter waits for its rest, but no longer than this many tokens.
_LONGEST_WAIT = 16


@dataclass(frozen=True)
class Decoded:
    """A reply: its text and tokens, and where the time went (seconds).

    Attributes:
        reused: prompt tokens that did not have to be computed.
        forwards: passes through the model for the new tokens.
    """

    text: str
    ids: tuple[int, ...]
    prefill: float
    decode: float
    reused: int
    forwards: int


class Decoder:
    """Generates from one network. Not for several threads at once."""

    def __init__(
        self,
        network: Network,
        decode: Callable[[Sequence[int]], str],
        stops: frozenset[int],
        drafts: Sequence[Sequence[int]] = (),
        generation: Generation | None = None,
        precision: str = "",
    ) -> None:
        """decode: tokens → text. stops: tokens that end a reply. drafts: tokens of likely replies."""
        self._network = network
        self._decode = decode
        self._stops = stops
        self._guesses = Guesses(drafts)
        self._generation = generation or Generation()
        self._precision = precision
        self._blocks = Blocks(network)
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._cancelled: Callable[[], bool] | None = None
        self._memory: Memory | None = None
        self._kept: list[tuple[bytes, int]] = []  # key and end of every part in the memory

    def forget(self) -> None:
        """Drop everything that is kept between requests."""
        self._memory = None
        self._blocks.forget()
        self._guesses.forget()
        self._features.clear()

    def run(
        self,
        request: Encoded,
        max_new_tokens: int,
        on_text: Callable[[str], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
        is_complete: Callable[[str], bool] | None = None,
    ) -> Decoded:
        """Generate until a stop token, `is_complete(text)`, or `max_new_tokens`.

        `on_text` gets whole letters only. `cancelled` is asked before every layer, so that it takes effect
        within a token also on a slow machine; on CUDA before every block. Raises Cancelled, and ModelError where
        the numbers break off; the next request starts afresh then.
        """
        self._cancelled = cancelled
        try:
            with torch.inference_mode():
                return self._run(request, max_new_tokens, on_text, is_complete)
        except BaseException:
            self._kept.clear()  # the layers may differ in how far they got
            raise
        finally:
            self._cancelled = None

    def _run(
        self,
        request: Encoded,
        max_new_tokens: int,
        on_text: Callable[[str], object] | None,
        is_complete: Callable[[str], bool] | None,
    ) -> Decoded:
        started = time.perf_counter()
        prompt = request.ids.tolist()
        room = len(prompt) + max_new_tokens + self._blocks.size
        memory, reused, logits = self._prefill(_parts_of(request), room)
        chooser = Chooser(self._generation, prompt, logits, self._precision)
        fresh = chooser.choose(logits, ())
        if fresh[0] == BROKEN:
            raise chooser.broken()
        prefilled = time.perf_counter()
        ahead = (
            int(request.positions.max()) + 1 - len(prompt)
        )  # of its place in the memory, a token's position
        reply = _Reply(self._stops, max_new_tokens, is_complete, _Text(self._decode, on_text))
        guesses = self._guesses.beside(request.ids[request.types == 0])
        forwards = 0
        while not reply.take(fresh, self._check):
            ids = reply.ids
            chooser.accept(fresh)
            # Blocks lie at fixed places of the reply, so that no number depends on what was guessed before.
            start = (len(ids) - 1) // self._blocks.size * self._blocks.size
            known = ids[start:]
            room_here = min(self._blocks.size - len(known), max_new_tokens - len(ids) - 1)
            guess = guesses.propose(ids, room_here)
            memory.length = len(prompt) + start
            logits = self._blocks.run(memory, [*known, *guess], ahead, room, self._check)
            rows = logits[len(known) - 1 : len(known) + len(guess)]
            choice = chooser.choose(rows, [ids[-1], *guess])
            forwards += 1
            right = next((n for n, each in enumerate(guess) if choice[n] != each), len(guess))
            fresh = choice[: right + 1]
            if BROKEN in fresh:
                raise chooser.broken()
        decoded = time.perf_counter()
        self._guesses.remember(reply.ids)
        text = reply.text.finish()
        return Decoded(text, tuple(reply.ids), prefilled - started, decoded - prefilled, reused, forwards)

    def _prefill(self, parts: list[_Part], room: int) -> tuple[Memory, int, torch.Tensor]:
        """Fill the memory with a request. Returns it, the tokens that were there before, and the last logits."""
        memory, language = self._memory, self._network.language
        same = 0
        # The last part is computed in any case: its last token's logits are needed.
        while same < min(len(parts) - 1, len(self._kept)) and self._kept[same][0] == parts[same].key:
            same += 1
        if memory is None:
            same = 0
        del self._kept[same:]
        reused = self._kept[-1][1] if same else 0
        if memory is None:
            memory = Memory(language.shape, rounds_of(room, self._blocks.step), language.embeddings)
        memory.length = reused
        if memory.capacity < room:
            memory = memory.grown(language.shape, rounds_of(room, self._blocks.step))
        self._memory = memory
        for part in parts[same:]:
            hidden = language.read(self._embed(part), self._to_device(part.positions), memory, self._check)
            self._kept.append((part.key, part.stop))
        return memory, reused, language.logits(hidden)

    def _embed(self, part: _Part) -> torch.Tensor:
        """(L, hidden) embeddings of a part, its pictures' features in their places."""
        embedded = self._network.language.embed(self._to_device(part.ids))
        if part.pictures:
            features = torch.cat([self._picture_features(*each) for each in part.pictures])
            embedded[self._to_device(part.types).bool()] = features.to(embedded.dtype)
        return embedded

    def _picture_features(self, key: bytes, pixels: np.ndarray, grid: np.ndarray) -> torch.Tensor:
        """The language model's tokens for one picture, computed once for the last few pictures."""
        if key not in self._features:
            rows, columns = (int(each) for each in grid[0, 1:])
            vision = self._network.vision
            self._features[key] = vision.look(self._to_device(pixels), rows, columns, self._check)
            if len(self._features) > _KEPT_PICTURES:
                self._features.popitem(last=False)
        self._features.move_to_end(key)
        return self._features[key]

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._network.device)

    def _check(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled()


@dataclass(frozen=True, eq=False)
class _Part:
    """A stretch of a request; `key` tells it from others by its tokens and pictures."""

    key: bytes
    stop: int
    ids: np.ndarray
    types: np.ndarray
    positions: np.ndarray
    pictures: list[tuple[bytes, np.ndarray, np.ndarray]]  # key, (P, D) pixels, (1, 3) grid


def _parts_of(request: Encoded) -> list[_Part]:
    begins = np.flatnonzero(
        np.diff(request.types, prepend=0) == 1
    )  # a picture's tokens never touch another's
    ends = np.cumsum(request.grid.prod(axis=1))
    parts = []
    start = 0
    for stop in request.parts:
        digest = hashlib.blake2b(request.ids[start:stop].tobytes(), digest_size=16)
        pictures = []
        for number in np.flatnonzero((begins >= start) & (begins < stop)):
            pixels = request.pixels[(ends[number - 1] if number else 0) : ends[number]]
            grid = request.grid[number : number + 1]
            key = hashlib.blake2b(grid.tobytes() + pixels.tobytes(), digest_size=16).digest()
            digest.update(key)
            pictures.append((key, pixels, grid))
        here = slice(start, stop)
        parts.append(
            _Part(
                digest.digest(),
                stop,
                request.ids[here],
                request.types[here],
                request.positions[:, here],
                pictures,
            )
        )
        start = stop
    return parts


class _Reply:
    """The tokens so far, and whether they are enough."""

    def __init__(
        self,
        stops: frozenset[int],
        most: int,
        is_complete: Callable[[str], bool] | None,
        text: _Text,
    ) -> None:
        self.ids: list[int] = []
        self.text = text
        self._stops = stops
        self._most = most
        self._is_complete = is_complete

    def take(self, tokens: Sequence[int], check: Callable[[], object]) -> bool:
        """Add tokens up to where the reply ends; True if it does. `check` is called before each."""
        for token in tokens:
            check()
            if token in self._stops:
                return True
            self.ids.append(token)
            self.text.add(token)
            if len(self.ids) >= self._most or (self._is_complete and self._is_complete(self.text.so_far)):
                return True
        return False


class _Text:
    """Tokens → text, handed on in whole letters."""

    def __init__(self, decode: Callable[[Sequence[int]], str], on_text: Callable[[str], object] | None):
        self.so_far = ""
        self._decode = decode
        self._on_text = on_text
        self._waiting: list[int] = []

    def add(self, token: int) -> None:
        self._waiting.append(token)
        piece = self._decode(self._waiting)
        if not piece.endswith("\ufffd") or len(self._waiting) >= _LONGEST_WAIT:
            self._emit(piece)

    def finish(self) -> str:
        if self._waiting:
            self._emit(self._decode(self._waiting))
        return self.so_far

    def _emit(self, piece: str) -> None:
        self._waiting.clear()
        self.so_far += piece
        if piece and self._on_text is not None:
            self._on_text(piece)
