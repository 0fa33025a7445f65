"""The policy on a server, with the same conversation and stopping rule as a local one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import requests

from ibis_agent.errors import ModelError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import IsCancelled, OnText, Turn
from ibis_agent.policy.messages import Message, build_messages, pictures_of
from ibis_agent.policy.remote.chat import Answer, Patience, ask
from ibis_agent.policy.remote.connection import TROUBLE, Connection, read_json
from ibis_agent.policy.remote.picture import data_address


class RemotePolicy:
    """A model on a server: greedy, streamed, cancellable.

    Attributes:
        identity: "name" (of the model on the server), "sha256" (empty, as unknown), "address".
        last: the last answer, with the server's token counts.
    """

    # The number of requests that may run in parallel.
    together = 4

    def __init__(
        self,
        connection: Connection,
        model: str,
        card: ModelCard,
        patience: Patience | None = None,
        repetition_penalty: float = 1.0,
    ) -> None:
        """repetition_penalty: from the model's generation_config.json, which a server may not read."""
        self.connection, self.model, self.card = connection, model, card
        self.identity = {"name": model or card.name, "sha256": "", "address": connection.base}
        self.patience = patience or Patience()
        # vLLM and SGLang read the first name, llama.cpp and Ollama the second. Also sent if it is 1: some servers have
        # their own default (llama-cpp-python: 1.1), which would penalise repeated digits of coordinates.
        self._penalty = dict.fromkeys(("repetition_penalty", "repeat_penalty"), repetition_penalty)
        if repetition_penalty != 1:
            self.identity["generation"] = f"repetition penalty {repetition_penalty:g}"
        self.last: Answer | None = None

    def reply(self, turn: Turn, on_text: OnText | None = None, cancelled: IsCancelled | None = None) -> str:
        """The reply to one turn. Raises Cancelled, InputError, ModelError."""
        return self.answer(turn, on_text, cancelled).text

    def answer(
        self,
        turn: Turn,
        on_text: OnText | None = None,
        cancelled: IsCancelled | None = None,
        whole: bool = False,
    ) -> Answer:
        """As `reply`, with the server's token counts. whole: read until the server ends, also after the action."""
        messages = chat_messages(build_messages(self.card, turn), pictures_of(self.card, turn), self.card)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.card.max_new_tokens,
            "temperature": 0,
        }
        enough = None if whole else self.card.speech.is_complete
        while True:
            said = {**body, **self._penalty}
            try:
                self.last = ask(self.connection, said, on_text, cancelled, enough, self.patience)
                return self.last
            except ModelError as error:  # some servers refuse unknown fields (transformers serve)
                unknown = [name for name in self._penalty if name in str(error.value)]
                if not unknown:
                    raise
                self._penalty = {key: self._penalty[key] for key in self._penalty if key not in unknown}
                if "generation" in self.identity and not self._penalty:
                    self.identity["generation"] += ", if the server has it by itself"


def chat_messages(
    messages: Sequence[Message], pictures: Sequence[np.ndarray], card: ModelCard
) -> list[dict[str, Any]]:
    """The conversation in the API's format; a user's picture comes before the text."""
    sent: list[dict[str, Any]] = []
    for message in messages:
        content: Any = message.text
        if message.picture is not None:
            address = data_address(pictures[message.picture], card)
            content = [
                {"type": "image_url", "image_url": {"url": address}},
                {"type": "text", "text": message.text},
            ]
        sent.append({"role": message.role, "content": content})
    return sent


def models_of(connection: Connection) -> list[str]:
    """The models that a server offers; empty if it does not list them. Raises ModelError if it cannot be reached."""
    try:
        with connection.open("GET", "/models", timeout=(10, 20)) as answer:
            if answer.status_code in (401, 403):
                raise connection.refusal(answer)
            values = read_json(answer) if answer.status_code == 200 else {}
    except (requests.RequestException, *TROUBLE) as error:
        raise ModelError(
            "the server cannot be reached",
            value=f"{connection.host}: {type(error).__name__}",
            remedy="Check that it is running, and check the address.",
        ) from error
    except ValueError:
        return []
    listed = values.get("data") if isinstance(values, dict) else None
    names = [each.get("id") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [name for name in names if isinstance(name, str)]
