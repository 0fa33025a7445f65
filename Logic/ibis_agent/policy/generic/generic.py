"""A policy of any family that transformers can run; slower than our own decoder for Qwen2.5-VL.

Nothing is cached between turns. Greedy, streamed, and cancellable between layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from ibis_agent.errors import Cancelled, ModelError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import IsCancelled, OnText, Turn
from ibis_agent.policy.device import run_error
from ibis_agent.policy.folder import PolicyFolder
from ibis_agent.policy.generic.processor import Conversations
from ibis_agent.policy.messages import build_messages, pictures_of

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class GenericPolicy:
    """Any vision-language model, on this machine's CPU or CUDA device."""

    def __init__(
        self,
        model: Any,
        chat: Conversations,
        card: ModelCard,
        found: PolicyFolder,
        device: str,
        precision: str,
    ) -> None:
        self.model, self.chat, self.card = model, chat, card
        self.device, self.precision = device, precision
        self.identity = found.identity(card.name)
        self._cancelled: IsCancelled | None = None
        for module in model.modules():
            if type(module).__name__.endswith(("Layer", "Block")):
                module.register_forward_pre_hook(self._before_a_layer)

    def reply(self, turn: Turn, on_text: OnText | None = None, cancelled: IsCancelled | None = None) -> str:
        """The reply to one turn. Raises Cancelled, InputError, ModelError."""
        request = self.chat.encode(build_messages(self.card, turn), pictures_of(self.card, turn))
        inputs = {key: self._placed(value) for key, value in request.items()}
        written = _Written(self.chat.tokenizer, self.card.speech.is_complete, on_text)
        self._cancelled = cancelled
        try:
            with torch.inference_mode():
                self.model.generate(
                    **inputs,
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=self.card.max_new_tokens,
                    stopping_criteria=StoppingCriteriaList([written]),
                )
            written.end()
        except (MemoryError, RuntimeError) as error:
            raise run_error(error, None) from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ModelError(
                "this model cannot process the request",
                value=f"{type(error).__name__}: {error}"[:200],
                remedy="Run it on a server, and choose that as the policy.",
            ) from error
        finally:
            self._cancelled = None
        return written.text

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self.device, self.model.dtype if value.is_floating_point() else None)

    def _before_a_layer(self, *_: Any) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled()


class _Written(StoppingCriteria):
    """Collects the text, streams complete characters only, and stops when the action is complete.

    Not a streamer, because some versions of transformers pass each token to a streamer one step late.
    """

    def __init__(self, tokenizer: Any, is_complete: Callable[[str], bool], on_text: OnText | None) -> None:
        self.text = ""
        self._ids: list[int] = []
        self._asked = -1
        self._is_complete, self._on_text = is_complete, on_text
        self._decode: Callable[[list[int]], str] = functools.partial(
            tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        if self._asked < 0:  # the first call comes after one new token
            self._asked = input_ids.shape[1] - 1
        self._ids = input_ids[0, self._asked :].tolist()
        self._tell(self._decode(self._ids), whole=False)
        done = self._is_complete(self.text)
        return torch.full((len(input_ids),), done, dtype=torch.bool, device=input_ids.device)

    def end(self) -> None:
        """Stream the rest of the text."""
        self._tell(self._decode(self._ids), whole=True)

    def _tell(self, text: str, whole: bool) -> None:
        if text.endswith("\ufffd") and not whole:
            return
        more, self.text = text[len(self.text) :], text
        if more and self._on_text is not None:
            self._on_text(more)
