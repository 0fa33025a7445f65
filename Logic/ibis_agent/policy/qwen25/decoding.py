"""Greedy decoding of one encoded request.

Equal to transformers' `generate` token by token, but faster, because it
- caches the keys and values of the common beginning of requests (the system message and, with a history, earlier
  turns), and the features of the last pictures;
- stops at the token that completes the action;
- decodes speculatively: it passes a block of the last tokens and a guess of the next ones (guesses) through the model,
  and keeps the tokens that greedy choice confirms.

Blocks have a fixed size, and a conversation is always computed in the same parts (Encoded.parts), cached or not. So the
same request gives the same text whatever came before, and going back in an episode is exact.
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
from ibis_agent.policy.training_contract import Encoded

_KEPT_PICTURES = 4
# The longest wait, in tokens, for the rest of an incomplete character.
_LONGEST_WAIT = 16


@dataclass(frozen=True)
class Decoded:
    """A reply.

    Attributes:
        text, ids: its text and tokens.
        prefill, decode: seconds for the request and for the reply.
        reused: number of cached prompt tokens.
        forwards: passes through the model for the reply.
    """

    text: str
    ids: tuple[int, ...]
    prefill: float
    decode: float
    reused: int
    forwards: int


class Decoder:
    """Generates replies with one network. Not thread-safe."""

    def __init__(
        self,
        network: Network,
        decode: Callable[[Sequence[int]], str],
        stops: frozenset[int],
        drafts: Sequence[Sequence[int]] = (),
        generation: Generation | None = None,
        precision: str = "",
    ) -> None:
        """decode: tokens → text. stops: end tokens. drafts: the tokens of likely replies."""
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
        self._kept: list[tuple[bytes, int]] = []  # (key, end) of every part in the memory

    def forget(self) -> None:
        """Drop everything cached between requests."""
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
        """Generate until an end token, `is_complete(text)`, or `max_new_tokens`.

        on_text: called with complete characters. cancelled: polled before every layer, on CUDA before every block.

        Raises Cancelled, and ModelError for NaN; the cache is then dropped.
        """
        self._cancelled = cancelled
        try:
            with torch.inference_mode():
                return self._run(request, max_new_tokens, on_text, is_complete)
        except BaseException:
            self._kept.clear()  # the layers may have got to different tokens
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
        ahead = int(request.positions.max()) + 1 - len(prompt)  # see Blocks.run
        reply = _Reply(self._stops, max_new_tokens, is_complete, _Text(self._decode, on_text))
        guesses = self._guesses.beside(request.ids[request.types == 0])
        forwards = 0
        while not reply.take(fresh, self._check):
            ids = reply.ids
            chooser.accept(fresh)
            # Blocks start at fixed positions of the reply, so that results do not depend on earlier guesses.
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
        """Fill the memory with a request → (memory, number of cached tokens, (1, V) last logits)."""
        memory, language = self._memory, self._network.language
        same = 0
        # The last part is always computed, because the logits of its last token are needed.
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
        """(L, hidden) embeddings of a part, with the features of its pictures."""
        embedded = self._network.language.embed(self._to_device(part.ids))
        if part.pictures:
            features = torch.cat([self._picture_features(*each) for each in part.pictures])
            embedded[self._to_device(part.types).bool()] = features.to(embedded.dtype)
        return embedded

    def _picture_features(self, key: bytes, pixels: np.ndarray, grid: np.ndarray) -> torch.Tensor:
        """(T, hidden) features of one picture, cached for the last few pictures."""
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
    """A part of a request; `key` is a hash of its tokens and pictures."""

    key: bytes
    stop: int
    ids: np.ndarray
    types: np.ndarray
    positions: np.ndarray
    pictures: list[tuple[bytes, np.ndarray, np.ndarray]]  # key, (P, D) pixels, (1, 3) grid


def _parts_of(request: Encoded) -> list[_Part]:
    # The tokens of two pictures are never adjacent.
    begins = np.flatnonzero(np.diff(request.types, prepend=0) == 1)
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
    """The tokens so far, and whether the reply is complete."""

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
        """Add tokens until the reply ends; True if it does. `check` is called before each."""
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
    """Tokens → text, streamed in complete characters."""

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
