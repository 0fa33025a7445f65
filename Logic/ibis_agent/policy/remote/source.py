"""A policy behind an address: which model, with which card, whether pictures may go there, and whether it was probed.

What a person has agreed to, and which servers passed the probe, stands in one small file of the person's settings. A
yes is for one address: for another one it is asked for again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from ibis_agent.errors import InputError, ModelError, OutputError
from ibis_agent.files import write_json
from ibis_agent.policy.card import ModelCard, card_to_json, load_card
from ibis_agent.policy.contract import IsCancelled
from ibis_agent.policy.qwen25.choice import read_generation
from ibis_agent.policy.remote.chat import Patience
from ibis_agent.policy.remote.connection import Connection
from ibis_agent.policy.remote.probe import probe
from ibis_agent.policy.remote.remote import RemotePolicy, models_of

KEY_VARIABLE = "IBIS_API_KEY"
WHAT_IS_SENT = "each slice in use, as a picture, and the question, but no names and no header of the scan"


class RemoteAddress:
    """A policy behind an address; see policy.find."""

    kind = "a server"
    cancelled: IsCancelled | None = None  # asked often while the probe goes on

    def __init__(
        self,
        address: str,
        model: str = "",
        card: str | os.PathLike[str] | None = None,
        agreed: str = "",
        patience: Patience | None = None,
    ) -> None:
        """card: a policy's folder, or its card itself; None for the published settings. agreed: the host that the
        person said yes to, for addresses of other machines.

        Raises InputError for what is not an address.
        """
        self.connection = Connection(address, os.environ.get(KEY_VARIABLE), KEY_VARIABLE)
        self.model, self._card, self._agreed = model, card or None, agreed
        self._patience = patience

    def __str__(self) -> str:
        return f"{self.connection.base} {self.model} {self._card or ''}".strip()

    @property
    def host(self) -> str:
        return self.connection.host

    @property
    def card(self) -> ModelCard:
        """Raises ModelError for a bad card."""
        card = ModelCard() if self._card is None else load_card(self._card)
        named = self._card is not None and card.name
        return card if named else dataclasses.replace(card, name=self.model or self.host)

    @property
    def needs_yes(self) -> bool:
        """Pictures would leave this machine, and nobody has agreed to that yet."""
        if self.connection.local or self._agreed == self.host:
            return False
        return _settings().get("agreed") != self.connection.base

    def agree(self) -> None:
        """The person said yes: it holds until another address is agreed to. Raises OutputError."""
        self._agreed = self.host
        _keep(agreed=self.connection.base)

    def check(self) -> None:
        """Raises InputError where a yes is missing, ModelError where the server or the model cannot be had."""
        self.check_yes()
        self.chosen()

    def models(self) -> list[str]:
        """Those that the server offers; empty where it does not say. Raises InputError, ModelError as `check`."""
        self.check_yes()
        return models_of(self.connection)

    def chosen(self) -> str:
        """The model's name on the server: the one that was named, or the only one. Raises ModelError."""
        listed = models_of(self.connection)
        if self.model:
            if listed and self.model not in listed:
                raise ModelError(
                    "the server has no such model",
                    value=self.model,
                    remedy=f"It has: {', '.join(listed)[:300]}.",
                )
            return self.model
        if len(listed) != 1:
            had = f"Available: {', '.join(listed)[:300]}." if listed else "It does not list its models."
            raise ModelError("the server's model is not specified", remedy=f"Choose one with --model. {had}")
        return listed[0]

    def run_bytes(self, precision: str, device: str) -> int:
        """Nothing of this machine."""
        return 0

    def facts(self) -> dict[str, str]:
        """See contract.PolicySource. Asks the server, which is sent nothing, for its models."""
        model = self.chosen()
        probed = _settings().get("probed")
        known = probed.get(self._probed_as(model)) if isinstance(probed, dict) else None
        return {
            "address": self.connection.base,
            "model": f"{model} on a server",
            "runs on": "this machine"
            if self.connection.local
            else f"{self.host}, which receives {WHAT_IS_SENT}",
            "card": "none: the published settings are used" if self._card is None else str(self._card),
            "probe": str(known or ""),
        }

    def open(self, device: str = "auto", precision: str = "auto") -> RemotePolicy:
        """The policy, probed if this address, model and card were not yet. Raises as `check` and `probe`."""
        self.check_yes()
        card, penalty = self.card, 1.0
        if self._card is not None and Path(self._card).is_dir() and card.generation_config:
            penalty = read_generation(Path(self._card)).repetition_penalty
        policy = RemotePolicy(self.connection, self.chosen(), card, self._patience, penalty)
        self.probe(policy)
        return policy

    def probe(self, policy: RemotePolicy, again: bool = False) -> str:
        """What the probe found, in words; kept, so that it is done once. Raises ModelError where it failed."""
        kept, key = _settings().get("probed"), self._probed_as(policy.model)
        probed = kept if isinstance(kept, dict) else {}
        if not again and isinstance(probed.get(key), str):
            return str(probed[key])
        findings = probe(policy, self.cancelled)
        findings.check()
        _keep(probed={**probed, key: findings.words})
        return findings.words

    def check_yes(self) -> None:
        """Raises InputError if pictures would leave this machine without consent."""
        if self.needs_yes:
            raise InputError(
                "pictures would be sent to another machine",
                value=self.connection.base,
                remedy=f"It would receive {WHAT_IS_SENT}. To allow this: --send-pictures-to {self.host}.",
            )

    def _probed_as(self, model: str) -> str:
        about = json.dumps([self.connection.base, model, card_to_json(self.card)], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:32]


def settings_file() -> Path:
    """Where agreements and probes are kept."""
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "ibis-agent" / "servers.json"


def _settings() -> dict[str, Any]:
    try:
        values = json.loads(settings_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _keep(**values: Any) -> None:
    """Write something into the settings; not being able to only means that it is asked for again."""
    path = settings_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**_settings(), **values})
    except (OSError, OutputError):
        return
