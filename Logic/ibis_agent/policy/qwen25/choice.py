"""Greedy choice of the next token, with the repetition penalty of the folder's generation_config.json.

The published inference calls transformers' `generate`, which applies that file's settings (since 4.50), so the
published weights are decoded with a repetition penalty. Here it is applied in the same way to a whole block of tokens.
Settings that would make decoding other than greedy are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibis_agent.errors import ModelError
from ibis_agent.policy.folder import read_json

if TYPE_CHECKING:
    from torch import Tensor

BROKEN = -1
# Unsupported settings that change greedy decoding, with their neutral values.
_OTHERS = {
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": None,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "exponential_decay_length_penalty": None,
    "penalty_alpha": None,
}


@dataclass(frozen=True)
class Generation:
    """A folder's changes to greedy decoding.

    Attributes:
        repetition_penalty: positive logits of all tokens in the prompt and the reply so far are divided by it,
            negative ones multiplied (Keskar et al. 2019, section 4.1).
        suppressed: tokens that are never chosen.
    """

    repetition_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """A description for people and the record; empty for plain greedy decoding."""
        said = [] if self.repetition_penalty == 1 else [f"repetition penalty {self.repetition_penalty:g}"]
        said += [f"{len(self.suppressed)} tokens suppressed"] if self.suppressed else []
        return ", ".join(said)


def read_generation(folder: Path) -> Generation:
    """The settings of generation_config.json; plain greedy decoding without that file.

    Sampling and temperature are ignored: the published inference decodes greedily. Raises ModelError.
    """
    file = folder / "generation_config.json"
    values = read_json(file) if file.is_file() else {}
    remedy = f'Remove it from the file, or set "generation_config": false in {folder / "ibis_model.json"}.'
    for key, plain in _OTHERS.items():
        if values.get(key) not in (None, plain):
            raise ModelError(
                f"sets {key}, which is not supported", file=file, value=values[key], remedy=remedy
            )
    penalty, suppressed = values.get("repetition_penalty"), values.get("suppress_tokens") or []
    penalty = 1.0 if penalty is None else penalty
    if isinstance(penalty, bool) or not isinstance(penalty, (int, float)) or not 0 < penalty < math.inf:
        raise ModelError(
            "repetition_penalty must be a number above 0", file=file, value=penalty, remedy=remedy
        )
    if not isinstance(suppressed, list) or not all(isinstance(each, int) for each in suppressed):
        raise ModelError(
            "suppress_tokens must be a list of tokens", file=file, value=suppressed, remedy=remedy
        )
    return Generation(float(penalty), tuple(suppressed))


class Chooser:
    """Chooses the tokens of one reply."""

    def __init__(
        self, generation: Generation, prompt: Sequence[int], like: Tensor, precision: str = ""
    ) -> None:
        """prompt: the tokens of the request. like: a tensor on the logits' device."""
        self._generation, self._precision, self._device = generation, precision, like.device
        self._prompt = prompt
        self._seen: Any = None

    def choose(self, logits: Tensor, tokens: Sequence[int]) -> list[int]:
        """The next token after each row of (n, V) logits; BROKEN for NaN or infinite logits.

        tokens: the token of each row; empty for the row at the end of the prompt. The caller reports those it keeps
        with `accept`.
        """
        import torch

        if self._generation.repetition_penalty != 1 or self._generation.suppressed:
            logits = self._adjusted(logits, tokens)
        values, found = logits.max(-1)
        return [int(each) for each in torch.where(torch.isfinite(values), found, BROKEN).tolist()]

    def broken(self) -> ModelError:
        """The error for a row that gave BROKEN."""
        remedy = "Choose the precision fp32; if that does not help, the weights are damaged."
        if self._precision in ("fp16", "int4"):
            remedy = "Choose the precision bf16, or fp32 on a card without it."
        return ModelError(
            "the policy computed NaN instead of the next token",
            value=self._precision or None,
            remedy=remedy,
        )

    def accept(self, tokens: Sequence[int]) -> None:
        """Add tokens to the reply."""
        if self._seen is not None and tokens:
            self._seen[list(tokens)] = True

    def _adjusted(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        import torch

        logits = logits.float().clone()
        penalty = self._generation.repetition_penalty
        if penalty != 1:
            if self._seen is None:
                self._seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=self._device)
                self._seen[torch.tensor(sorted(set(map(int, self._prompt))), device=self._device)] = True
            seen = self._seen.repeat(len(logits), 1)
            for row, token in enumerate(tokens):
                seen[row:, token] = True
            logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
        if self._generation.suppressed:
            logits[:, list(self._generation.suppressed)] = -math.inf
        return logits
