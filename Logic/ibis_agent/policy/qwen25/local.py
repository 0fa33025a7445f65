"""A Qwen2.5-VL policy on this machine. Torch is imported when it is loaded, not before."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from ibis_agent.errors import InputError, ModelError
from ibis_agent.policy.card import ModelCard, load_card
from ibis_agent.policy.contract import IsCancelled, OnText, Turn
from ibis_agent.policy.device import device_of, precision_for, run_error
from ibis_agent.policy.folder import PolicyFolder, look_into
from ibis_agent.policy.formats import UNPACKED
from ibis_agent.policy.messages import build_messages, pictures_of
from ibis_agent.policy.qwen25.shape import read_shape
from ibis_agent.policy.required_memory import (
    check_memory,
    check_request,
)

if TYPE_CHECKING:
    from ibis_agent.policy.qwen25.chat import Chat
    from ibis_agent.policy.qwen25.decoding import Decoded, Decoder
    from ibis_agent.policy.qwen25.network import Network


class LocalPolicy:
    """A Qwen2.5-VL policy on this machine's CPU or CUDA device: greedy, streamed, cancellable.

    Generation stops when the action (or the answer after Terminate) is closed. Nothing is downloaded, no pickle is
    opened, and no code of the folder is run.
    """

    def __init__(
        self, network: Network, chat: Chat, card: ModelCard, found: PolicyFolder, device: str, precision: str
    ) -> None:
        from ibis_agent.policy.qwen25.choice import Generation, read_generation
        from ibis_agent.policy.qwen25.decoding import Decoder

        self.network = network
        self.chat = chat
        self.card = card
        self.folder = found
        self.device = device
        self.precision = precision
        self.generation = read_generation(found.folder) if card.generation_config else Generation()
        self.identity = found.identity(card.name)
        if self.generation.words:
            self.identity["generation"] = self.generation.words
        self.last: Decoded | None = None
        """The last reply, with its tokens and times."""
        drafts = [chat.tokenizer.encode(text, add_special_tokens=False).ids for text in card.drafts]
        self._decoder: Decoder = Decoder(network, chat.decode, chat.stops, drafts, self.generation, precision)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], device: str = "auto", precision: str = "auto"
    ) -> LocalPolicy:
        """Check the folder and this machine, then load. Arguments and errors as in policy.open."""
        card = load_card(folder)
        found = look_into(folder, quantised=(UNPACKED,))
        if found.quantised:
            found.quantised.check(found.folder)
        read_shape(found.config, found.folder / "config.json")
        device = device_of(device)
        precision = precision_for(found, device, precision, card.max_new_tokens)
        check_memory(found, precision, device, card.max_new_tokens)
        from ibis_agent.policy.qwen25.build import build
        from ibis_agent.policy.qwen25.chat import Chat

        chat = Chat.load(folder, card)
        try:
            network = build(found, device, precision)
        except ModelError:
            raise
        except (MemoryError, RuntimeError) as error:
            raise run_error(error, found.folder) from error
        return cls(network, chat, card, found, device, precision)

    @functools.cached_property
    def model(self) -> Any:
        """The same weights as a transformers model, loaded at first use. Raises ModelError."""
        from ibis_agent.policy.qwen25.reference import load_model

        return load_model(self.folder, self.device, self.precision)

    def forget(self) -> None:
        """Drop everything cached between turns, to free memory."""
        self._decoder.forget()

    def reply(self, turn: Turn, on_text: OnText | None = None, cancelled: IsCancelled | None = None) -> str:
        """The reply to one turn. Raises Cancelled, InputError, ModelError."""
        messages = build_messages(self.card, turn)
        request = self.chat.encode(messages, pictures_of(self.card, turn))
        longest = self.network.shape.text.longest
        room = longest - len(request.ids)
        if room < 1:
            raise InputError(
                "the question and its pictures exceed this policy's context length",
                value=f"{len(request.ids)} of {longest} tokens",
                remedy="Shorten the question, or use a smaller picture or a shorter history.",
            )
        check_request(self.folder, self.precision, self.device, self.card.max_new_tokens, len(request.ids))
        try:
            self.last = self._decoder.run(
                request, min(room, self.card.max_new_tokens), on_text, cancelled, self.card.speech.is_complete
            )
        except (MemoryError, RuntimeError) as error:
            raise run_error(error, None) from error
        return self.last.text
