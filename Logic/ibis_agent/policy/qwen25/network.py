"""The Qwen2.5-VL network for inference: a picture to tokens, and tokens to hidden states.

Written for few kernel launches: query, key and value in one product, gate and up in another; keys and values in one
preallocated memory; vision windows of equal size in one attention call; position encodings once per pass. Equal to
transformers' network within rounding, without its imports.

Sources: Qwen2.5-VL technical report (2025), sections 2.1 and 2.2; Qwen2-VL (2024), section 2.1 (positions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ibis_agent.policy.qwen25.shape import Shape, TextShape, VisionShape

Check = Callable[[], object]
Step = Callable[..., Tensor]
_VISION_EPSILON = 1e-6
# Prompt tokens computed at once; limits the memory of masks and intermediate results.
_CHUNK = 1024


class Dense:
    """y = x Wᵀ + b."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def onto(self, rest: Tensor, x: Tensor) -> Tensor:
        """rest + x Wᵀ + b, in one kernel if there is no bias."""
        if self.bias is None:
            return torch.addmm(rest, x, self.weight.t())
        return rest + self(x)


@dataclass
class Block:
    """One layer of the language model or the vision tower."""

    norm_in: Tensor
    qkv: Any
    out: Any
    norm_mid: Tensor
    gate_up: Any
    down: Any

    def feed(self, x: Tensor, epsilon: float) -> Tensor:
        """The residual feed-forward part: (L, hidden) → (L, hidden)."""
        gate, up = self.gate_up(_norm(x, self.norm_mid, epsilon)).chunk(2, dim=-1)
        return self.down.onto(x, F.silu(gate).mul_(up))


class Memory:
    """Keys and values of up to `capacity` tokens in every layer. To go back, reduce `length`."""

    def __init__(self, text: TextShape, capacity: int, like: Tensor) -> None:
        size = (text.layers, 2, text.kept_heads, capacity, text.head)
        self.values = torch.zeros(size, dtype=like.dtype, device=like.device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return int(self.values.shape[3])

    def grown(self, text: TextShape, capacity: int) -> Memory:
        """A copy with a larger capacity."""
        more = Memory(text, capacity, self.values)
        more.values[:, :, :, : self.length] = self.values[:, :, :, : self.length]
        more.length = self.length
        return more


@dataclass
class Language:
    """The language model's weights."""

    shape: TextShape
    embeddings: Tensor
    layers: list[Block]
    norm: Tensor
    head: Any
    _turns: Tensor = field(init=False)
    _axis: Tensor = field(init=False)

    def __post_init__(self) -> None:
        head, device = self.shape.head, self.embeddings.device
        steps = torch.arange(0, head, 2, dtype=torch.float32) / head
        self._turns = (1.0 / self.shape.theta**steps).to(device)
        axes = torch.repeat_interleave(torch.arange(3), torch.tensor(self.shape.sections))
        self._axis = axes.to(device)

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embeddings)

    def logits(self, hidden: Tensor) -> Tensor:
        """(L, hidden) → (L, vocabulary)."""
        return self.head(hidden)

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine, (L, 1, head) each, for (3, L) positions in time, row and column."""
        angles = positions.index_select(0, self._axis).t().to(torch.float32) * self._turns
        return _cosine_and_sine(angles, self.embeddings.dtype)

    def read(self, x: Tensor, positions: Tensor, memory: Memory, check: Check) -> Tensor:
        """Append (L, hidden) embeddings at (3, L) positions to the memory → the last hidden state, (1, hidden).

        check: called before every layer.
        """
        for start in range(0, len(x), _CHUNK):
            stop = min(start + _CHUNK, len(x))
            hidden = self._pass(x[start:stop], positions[:, start:stop], memory, check)
            memory.length += stop - start
        return hidden[-1:]

    def _pass(self, x: Tensor, positions: Tensor, memory: Memory, check: Check) -> Tensor:
        count, start = len(x), memory.length
        turned = self.rotation(positions)
        mask = None
        if start and count > 1:
            mask = torch.ones(count, start + count, dtype=torch.bool, device=x.device).tril_(start)
        for number, layer in enumerate(self.layers):
            check()
            query, kept = _project(self.shape, layer, x, turned)
            room = memory.values[number, :, :, start : start + count]
            room.copy_(kept)
            keys, values = memory.values[number, :, :, : start + count]
            groups = self.shape.heads // self.shape.kept_heads
            seen = F.scaled_dot_product_attention(
                query.transpose(0, 1)[None],
                keys.repeat_interleave(groups, 0)[None] if groups > 1 else keys[None],
                values.repeat_interleave(groups, 0)[None] if groups > 1 else values[None],
                attn_mask=mask,
                is_causal=not start and count > 1,
            )[0]
            x = layer.out.onto(x, seen.transpose(0, 1).reshape(count, -1))
            x = layer.feed(x, self.shape.epsilon)
        return _norm(x, self.norm, self.shape.epsilon)

    def block(
        self,
        ids: Tensor,
        rotation: tuple[Tensor, Tensor],
        places: Tensor,
        memory: Memory,
        mask: Tensor,
        check: Check,
        step: Step | None = None,
    ) -> Tensor:
        """(n, hidden) hidden states of a few tokens.

        Args:
            ids, places: (n,) each, the tokens and their slots in the memory, whose length the caller updates.
            mask: (n, T) bool, which of the first T slots each token attends to. Shapes do not depend on the slots, so
                that a graph can be captured.
            check: called before every layer.
            step: replaces `layer_of_block`.
        """
        step = step or layer_of_block
        shape = self.shape
        groups = shape.heads // shape.kept_heads
        # Heads that share keys and values become rows of one query, so that nothing is repeated.
        seen_by = mask.repeat(groups, 1) if groups > 1 else mask
        x = self.embed(ids)
        for number, layer in enumerate(self.layers):
            check()
            x = step(shape, layer, x, rotation, places, memory.values[number], seen_by)
        return _norm(x, self.norm, shape.epsilon)


def layer_of_block(
    shape: TextShape,
    layer: Block,
    x: Tensor,
    rotation: tuple[Tensor, Tensor],
    places: Tensor,
    kept_here: Tensor,
    seen_by: Tensor,
) -> Tensor:
    """One layer of `Language.block`: (n, hidden) → (n, hidden). Writes keys and values into `kept_here`.

    kept_here: (2, kept heads, capacity, head). seen_by: (groups · n, T) bool.
    """
    count, width = len(x), seen_by.shape[1]
    query, kept = _project(shape, layer, x, rotation)
    kept_here.index_copy_(2, places, kept)
    query = query.view(count, shape.kept_heads, -1, shape.head).permute(1, 2, 0, 3)
    keys, values = kept_here[:, :, :width]
    seen = F.scaled_dot_product_attention(
        query.reshape(1, shape.kept_heads, -1, shape.head), keys[None], values[None], attn_mask=seen_by
    )
    seen = seen.view(shape.kept_heads, -1, count, shape.head).permute(2, 0, 1, 3)
    x = layer.out.onto(x, seen.reshape(count, -1))
    return layer.feed(x, shape.epsilon)


def _project(
    shape: TextShape, layer: Block, x: Tensor, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """((L, heads, head) queries, (2, kept heads, L, head) keys and values)."""
    turned = shape.heads + shape.kept_heads
    each = layer.qkv(_norm(x, layer.norm_in, shape.epsilon)).view(len(x), -1, shape.head)
    query_key = _rotated(each[:, :turned], rotation)
    kept = torch.stack((query_key[:, shape.heads :], each[:, turned:])).transpose(1, 2)
    return query_key[:, : shape.heads], kept


@dataclass
class Vision:
    """The vision tower's weights."""

    shape: VisionShape
    patch: Dense
    blocks: list[Block]
    norm: Tensor
    merge_in: Dense
    merge_out: Dense

    def look(self, patches: Tensor, rows: int, columns: int, check: Check) -> Tensor:
        """(T, out) tokens of a picture from its (rows·columns, n) patches, which are ordered by token.

        check: called before every block.
        """
        shape = self.shape
        order, groups, places = _windows(rows, columns, shape.merge, shape.window)
        unit = shape.merge**2
        order = order.to(patches.device)
        x = self.patch(patches.to(self.patch.weight.dtype)).view(-1, unit, shape.hidden)[order]
        x = x.reshape(-1, shape.hidden)
        rotation = self._rotation(places.to(patches.device).view(-1, unit, 2)[order].view(-1, 2))
        everything = [(0, len(x), len(x))]
        for number, block in enumerate(self.blocks):
            check()
            x = self._attend(block, x, rotation, everything if number in shape.full else groups)
            x = block.feed(x, _VISION_EPSILON)
        merged = _norm(x, self.norm, _VISION_EPSILON).view(-1, unit * shape.hidden)
        merged = self.merge_out(F.gelu(self.merge_in(merged)))
        found = torch.empty_like(merged)
        found[order] = merged
        return found

    def _attend(
        self, block: Block, x: Tensor, rotation: tuple[Tensor, Tensor], groups: list[tuple[int, int, int]]
    ) -> Tensor:
        count, heads = len(x), self.shape.heads
        each = block.qkv(_norm(x, block.norm_in, _VISION_EPSILON)).view(count, 3, heads, -1)
        turned = _rotated(each[:, :2].float(), rotation).to(x.dtype)
        query, key, value = turned[:, 0], turned[:, 1], each[:, 2]
        pieces = []
        for start, stop, size in groups:
            many = (part[start:stop].view(-1, size, heads, part.shape[-1]) for part in (query, key, value))
            q, k, v = (part.transpose(1, 2) for part in many)
            seen = F.scaled_dot_product_attention(q, k, v)
            pieces.append(seen.transpose(1, 2).reshape(stop - start, -1))
        return block.out.onto(x, pieces[0] if len(pieces) == 1 else torch.cat(pieces))

    def _rotation(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine, (P, 1, 1, head) each, for the (P, 2) rows and columns of patches."""
        half = self.shape.hidden // self.shape.heads // 2
        turns = 1.0 / self.shape.theta ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
        angles = (places.to(torch.float32)[:, :, None] * turns.to(places.device)).flatten(1)
        cosine, sine = _cosine_and_sine(angles, torch.float32)
        return cosine[:, None], sine[:, None]


@dataclass
class Network:
    """A complete Qwen2.5-VL network."""

    shape: Shape
    vision: Vision
    language: Language

    @property
    def device(self) -> torch.device:
        return self.language.embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language.embeddings.dtype

    @property
    def parameters(self) -> int:
        """The number of parameters; shared ones count once."""
        seen = {id(each): each.numel() for each in _tensors(self)}
        return sum(seen.values())


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, epsilon)


def _cosine_and_sine(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(L, head / 2) angles → cosine and signed sine, (L, 1, head) each, for `_rotated`."""
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cosine, cosine), -1)[:, None], torch.cat((-sine, sine), -1)[:, None]


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (n, n + head / 2) by its angle. The sign of the sine is in `rotation`."""
    cosine, sine = rotation
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)


def _windows(
    rows: int, columns: int, merge: int, window: int
) -> tuple[Tensor, list[tuple[int, int, int]], Tensor]:
    """The order of a picture's tokens that groups windows of equal size.

    Returns the order of tokens; (first patch, end, patches per window) for each window size; and (P, 2) row and column
    of every patch, ordered by token.
    """
    high, wide, side = rows // merge, columns // merge, window // merge
    tokens = torch.arange(high * wide).view(high, wide)
    whole = (high // side * side, wide // side * side)
    order, groups, start = [], [], 0
    for top, bottom, tall in ((0, whole[0], side), (whole[0], high, high - whole[0])):
        for left, right, broad in ((0, whole[1], side), (whole[1], wide, wide - whole[1])):
            if bottom > top and right > left:
                part = tokens[top:bottom, left:right].reshape(-1, tall, (right - left) // broad, broad)
                order.append(part.transpose(1, 2).reshape(-1))
                stop = start + order[-1].numel() * merge**2
                groups.append((start, stop, tall * broad * merge**2))
                start = stop
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
    places = grid.view(high, merge, wide, merge, 2).transpose(1, 2).reshape(-1, 2)
    return torch.cat(order), groups, places


def _tensors(part: Any) -> Iterable[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, (list, tuple)):
        for each in part:
            yield from _tensors(each)
    elif hasattr(part, "__dict__"):
        for name, each in vars(part).items():
            if not name.startswith("_") and name != "shape":
                yield from _tensors(each)


def rounds_of(length: int, step: int) -> int:
    """The next multiple of `step`."""
    return math.ceil(length / step) * step
