"""Sampling replies of a policy in batches with their log-probabilities, and scoring them again.

Requests are encoded exactly as in inference (see samples). The expensive parts are computed once: the features of a
picture, and a request shared by several rollouts. In sampling its keys and values are copied; in scoring its replies
are packed behind it in one row, each attending to the request and itself. Episodes are in roller, losses in
grpo.objective.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import numpy as np
import torch
import torch.nn.functional as F
from ibis_agent.policy.card import ModelCard, load_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.training_contract import Chat, Encoded
from torch import Tensor

from training.rollouts.samples import build_request

KEPT_PICTURES = 1024


@dataclass(frozen=True, eq=False)
class Request:
    """One turn as tokens. `key` is equal for equal requests; `pictures` has one key per picture."""

    encoded: Encoded
    key: bytes
    pictures: tuple[bytes, ...]

    @property
    def next_position(self) -> int:
        """Position of the reply's first token, for the rotary embedding."""
        return int(self.encoded.positions.max()) + 1


@dataclass(frozen=True, eq=False)
class Sample:
    """A reply: its text, its n tokens, and their (n,) float32 log-probabilities at the sampling temperature.

    The tokens include the stop token if the policy chose one; a reply that was complete earlier has none.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: np.ndarray


class BatchPolicy:
    """A Qwen2.5-VL that replies to many requests at once. Its `model` may be trained in between.

    policy = BatchPolicy.load(folder)
    requests = [policy.request(turn) for turn in turns]
    samples = policy.sample(requests, temperature=1.0, generator=torch.Generator().manual_seed(1))
    """

    def __init__(self, model: Any, chat: Chat, card: ModelCard) -> None:
        self.model = model
        self.chat = chat
        self.card = card
        self._language = model.model.language_model
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        size = chat.tokenizer.get_vocab_size()
        self._closing = {n for n in range(size) if ">" in chat.decode([n])}
        self._pad = min(chat.stops)

    @classmethod
    def load(cls, folder: Path, device: str = "auto", precision: str = "fp32") -> BatchPolicy:
        """Load a policy folder as inference does. Raises ModelError."""
        chat = policies.trainable(folder).chat(card := load_card(folder))
        local: Any = policies.open(folder, device, precision)
        return cls(local.model, chat, card)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def forget_pictures(self) -> None:
        """Drop the cached features after the vision tower has changed."""
        self._features.clear()

    def request(self, turn: Turn) -> Request:
        """Encode one turn. Raises InputError."""
        encoded = build_request(self.chat, self.card, turn)
        pictures, start = [], 0
        for grid in encoded.grid:
            stop = start + int(grid.prod())
            content = grid.tobytes() + encoded.pixels[start:stop].tobytes()
            pictures.append(hashlib.blake2b(content, digest_size=16).digest())
            start = stop
        key = hashlib.blake2b(encoded.ids.tobytes() + b"".join(pictures), digest_size=16).digest()
        return Request(encoded, key, tuple(pictures))

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[Request],
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        batch: int = 256,
    ) -> list[Sample]:
        """One reply to each request. Temperature 0 is greedy, with log-probabilities at temperature 1.

        Equal requests are encoded once and answered independently. batch: most replies at a time.
        """
        samples: list[Sample] = []
        for start in range(0, len(requests), batch):
            samples += self._sample(requests[start : start + batch], temperature, generator)
        return samples

    def _sample(
        self, requests: Sequence[Request], temperature: float, generator: torch.Generator | None
    ) -> list[Sample]:
        unique, owner = _distinct(requests)
        most = self.card.max_new_tokens
        cache, keep, last = self._prefill(unique, most)
        rows = torch.tensor(owner, device=self.device)
        cache.select(rows)
        keep, hidden = keep[rows], last[rows]
        positions = torch.tensor([unique[n].next_position for n in owner], device=self.device)
        said: list[list[int]] = [[] for _ in requests]
        scores: list[list[float]] = [[] for _ in requests]
        active = np.arange(len(requests))
        going = np.ones(len(requests), dtype=bool)  # for the rows still computed
        for step in range(most):
            tokens, chosen = self._choose(hidden, temperature, generator)
            for row, (token, score) in enumerate(zip(tokens.tolist(), chosen.tolist(), strict=True)):
                if going[row]:
                    said[active[row]].append(token)
                    scores[active[row]].append(score)
                    going[row] = not self._is_over(said[active[row]])
            if not going.any() or step + 1 == most:
                break
            if going.sum() <= 0.75 * len(going):
                left = torch.from_numpy(np.flatnonzero(going)).to(self.device)
                cache.select(left)
                keep, tokens, positions = keep[left], tokens[left], positions[left]
                active, going = active[going], going[going]
            keep = F.pad(keep, (0, 1), value=True)
            hidden = self._language(
                inputs_embeds=self._language.embed_tokens(tokens[:, None]),
                attention_mask=_additive(keep[:, None, None], self.model.dtype),
                position_ids=(positions + step).expand(3, 1, -1).transpose(1, 2),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        return [
            Sample(self._text(ids), tuple(ids), np.array(each, np.float32))
            for ids, each in zip(said, scores, strict=True)
        ]

    def score(self, said: Sequence[tuple[Request, Sequence[int]]], temperature: float = 1.0) -> list[Tensor]:
        """(n,) log-probabilities of the n tokens of each reply, with gradients if they are enabled.

        All of `said` is one batch; use `batches` to split it.
        """
        unique, owner = _distinct([request for request, _ in said])
        replies: list[list[int]] = [[] for _ in unique]  # for each request, indices into `said`
        for n, which in enumerate(owner):
            replies[which].append(n)
        lengths = [
            len(request.encoded.ids) + sum(len(said[n][1]) - 1 for n in mine)
            for request, mine in zip(unique, replies, strict=True)
        ]
        rows, longest, device = len(unique), max(lengths), self.device
        ids = torch.full((rows, longest), self._pad, device=device)
        positions = torch.zeros(3, rows, longest, dtype=torch.long, device=device)
        allowed = torch.eye(longest, dtype=torch.bool, device=device).repeat(rows, 1, 1)
        places: list[list[int]] = [[] for _ in said]  # where the token before each reply token is
        for row, (request, mine) in enumerate(zip(unique, replies, strict=True)):
            end = len(request.encoded.ids)
            ids[row, :end] = torch.from_numpy(request.encoded.ids)
            positions[:, row, :end] = torch.from_numpy(request.encoded.positions)
            allowed[row, :end, :end] = _triangle(end, device)
            start = end
            for n in mine:
                tokens = list(said[n][1])
                stop = start + len(tokens) - 1
                ids[row, start:stop] = torch.tensor(tokens[:-1], dtype=torch.long)
                positions[:, row, start:stop] = request.next_position + torch.arange(stop - start)
                allowed[row, start:stop, :end] = True
                allowed[row, start:stop, start:stop] = _triangle(stop - start, device)
                places[n] = [row * longest + each for each in (end - 1, *range(start, stop))]
                start = stop
        hidden = self._language(
            inputs_embeds=self._embedded(unique, ids, left=False),
            attention_mask=_additive(allowed[:, None], self.model.dtype),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state.flatten(0, 1)
        targets = torch.tensor([token for _, tokens in said for token in tokens], device=device)
        found = self._logprobs(hidden[[place for each in places for place in each]], temperature)
        return list(found.gather(1, targets[:, None])[:, 0].split([len(tokens) for _, tokens in said]))

    @staticmethod
    def batches(said: Sequence[tuple[Request, Sequence[int]]], tokens: int) -> Iterator[list[int]]:
        """Indices into `said` in batches of at most about `tokens` tokens; equal requests stay together."""
        unique, owner = _distinct([request for request, _ in said])
        groups: list[list[int]] = [[] for _ in unique]
        for n, which in enumerate(owner):
            groups[which].append(n)
        sizes = [
            len(request.encoded.ids) + sum(len(said[n][1]) for n in mine)
            for request, mine in zip(unique, groups, strict=True)
        ]
        batch: list[int] = []
        longest = rows = 0
        for which in np.argsort(sizes, kind="stable")[::-1]:  # similar lengths together, for less padding
            if batch and (rows + 1) * max(longest, sizes[which]) > tokens:
                yield batch
                batch, longest, rows = [], 0, 0
            batch += groups[which]
            longest, rows = max(longest, sizes[which]), rows + 1
        if batch:
            yield batch

    def _prefill(self, requests: Sequence[Request], more: int) -> tuple[_Cache, Tensor, Tensor]:
        """(cache with room for `more` tokens, (B, L) bool mask of real tokens, (B, hidden) last states)."""
        longest = max(len(each.encoded.ids) for each in requests)
        ids = torch.full((len(requests), longest), self._pad, device=self.device)
        positions = torch.zeros(3, len(requests), longest, dtype=torch.long, device=self.device)
        keep = torch.zeros(len(requests), longest, dtype=torch.bool, device=self.device)
        for row, request in enumerate(requests):
            start = longest - len(request.encoded.ids)
            ids[row, start:] = torch.from_numpy(request.encoded.ids)
            positions[:, row, start:] = torch.from_numpy(request.encoded.positions)
            keep[row, start:] = True
        allowed = keep[:, None] & _triangle(longest, self.device)
        # Padding attends to itself, or softmax would be NaN.
        allowed |= torch.eye(longest, dtype=torch.bool, device=self.device)
        cache = _Cache(longest + more)
        hidden = self._language(
            inputs_embeds=self._embedded(requests, ids, left=True),
            attention_mask=_additive(allowed[:, None], self.model.dtype),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return cache, keep, hidden[:, -1]

    def _embedded(self, requests: Sequence[Request], ids: Tensor, left: bool) -> Tensor:
        """(B, L, hidden) embeddings of (B, L) tokens and pictures. left: padded on the left."""
        embedded = self._language.embed_tokens(ids)
        seen = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
        for row, request in enumerate(requests):
            types = torch.from_numpy(request.encoded.types == 1)
            part = slice(ids.shape[1] - len(types), None) if left else slice(0, len(types))
            seen[row, part] = types.to(ids.device)
        if not seen.any():
            return embedded
        features = torch.cat(self._seen(requests)).to(embedded.dtype)
        return embedded.masked_scatter(seen[..., None], features)

    def _seen(self, requests: Sequence[Request]) -> list[Tensor]:
        """Features of all pictures of all requests; cached between calls unless the vision tower is trained."""
        trained = torch.is_grad_enabled() and any(
            p.requires_grad for p in self.model.model.visual.parameters()
        )
        found: dict[bytes, Tensor] = {} if trained else dict(self._features)
        fresh: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        for request in requests:
            start = 0
            for key, grid in zip(request.pictures, request.encoded.grid, strict=True):
                stop = start + int(grid.prod())
                if key not in found:
                    fresh[key] = (request.encoded.pixels[start:stop], grid)
                start = stop
        if fresh:
            pixels = torch.from_numpy(np.concatenate([each for each, _ in fresh.values()]))
            grids = torch.from_numpy(np.stack([each for _, each in fresh.values()]))
            output = self.model.get_image_features(
                pixels.to(self.device, self.model.dtype), grids.to(self.device), return_dict=True
            ).pooler_output
            found.update(zip(fresh, output, strict=True))
        if not trained:
            self._features.update((key, found[key]) for key in fresh)
            while len(self._features) > KEPT_PICTURES:
                self._features.popitem(last=False)
        return [found[key] for request in requests for key in request.pictures]

    def _choose(
        self, hidden: Tensor, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """(B,) next tokens and their (B,) log-probabilities from (B, hidden)."""
        found = self._logprobs(hidden, temperature or 1.0)
        if temperature:
            tokens = torch.multinomial(found.exp(), 1, generator=generator)
        else:
            tokens = found.argmax(-1, keepdim=True)
        return tokens[:, 0], found.gather(1, tokens)[:, 0]

    def _logprobs(self, hidden: Tensor, temperature: float) -> Tensor:
        return F.log_softmax(self.model.lm_head(hidden).float() / temperature, -1)

    def _is_over(self, ids: list[int]) -> bool:
        if ids[-1] in self.chat.stops:
            return True
        return ids[-1] in self._closing and self.card.speech.is_complete(self.chat.decode(ids))

    def _text(self, ids: list[int]) -> str:
        return self.chat.decode(ids[:-1] if ids[-1] in self.chat.stops else ids)


class _Cache:
    """Preallocated keys and values, so that adding a token copies nothing."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._layers: dict[int, tuple[Tensor, Tensor, int]] = {}

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Called by transformers in every layer: append, and return all keys and values so far."""
        if layer_idx not in self._layers:
            shape = (*keys.shape[:2], self._room, keys.shape[3])
            self._layers[layer_idx] = (keys.new_empty(shape), values.new_empty(shape), 0)
        all_keys, all_values, start = self._layers[layer_idx]
        stop = start + keys.shape[2]
        all_keys[:, :, start:stop], all_values[:, :, start:stop] = keys, values
        self._layers[layer_idx] = (all_keys, all_values, stop)
        return all_keys[:, :, :stop], all_values[:, :, :stop]

    def select(self, rows: Tensor) -> None:
        """Keep these rows in this order; rows may be repeated."""
        self._layers = {n: (k[rows], v[rows], stop) for n, (k, v, stop) in self._layers.items()}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._layers[layer_idx][2] if layer_idx in self._layers else 0


def _distinct(requests: Sequence[Request]) -> tuple[list[Request], list[int]]:
    """The distinct requests, and the index of each request among them."""
    places: dict[bytes, int] = {}
    unique: list[Request] = []
    for request in requests:
        if places.setdefault(request.key, len(unique)) == len(unique):
            unique.append(request)
    return unique, [places[request.key] for request in requests]


def _triangle(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as a term added to attention scores."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )
