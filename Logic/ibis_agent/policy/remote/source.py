"""A policy on a server before it is opened: model, card, consent to send pictures, and the probe.

Consent and passed probes are kept in a small settings file. Consent holds for one address only.
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
    """See policy.find and contract.PolicySource."""

    kind = "a server"
    cancelled: IsCancelled | None = None  # polled during the probe

    def __init__(
        self,
        address: str,
        model: str = "",
        card: str | os.PathLike[str] | None = None,
        agreed: str = "",
        patience: Patience | None = None,
    ) -> None:
        """Arguments as in policy.find. Raises InputError for an invalid address."""
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
        """The card that was given, or the published settings. Raises ModelError."""
        card = ModelCard() if self._card is None else load_card(self._card)
        named = self._card is not None and card.name
        return card if named else dataclasses.replace(card, name=self.model or self.host)

    @property
    def needs_yes(self) -> bool:
        """Whether pictures would leave this machine without consent."""
        if self.connection.local or self._agreed == self.host:
            return False
        return _settings().get("agreed") != self.connection.base

    def agree(self) -> None:
        """Store the user's consent for this address; it replaces an earlier one."""
        self._agreed = self.host
        _keep(agreed=self.connection.base)

    def check(self) -> None:
        """Raise InputError without consent, and ModelError if the server or the model is not available."""
        self.check_yes()
        self.chosen()

    def models(self) -> list[str]:
        """The models that the server offers; empty if it does not list them. Raises as `check`."""
        self.check_yes()
        return models_of(self.connection)

    def chosen(self) -> str:
        """The model's name on the server: the one given, or the only one. Raises ModelError."""
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
            remedy = f"Choose one: --model in the terminal, under Models in Slicer. {had}"
            raise ModelError("the server's model is not specified", remedy=remedy)
        return listed[0]

    def run_bytes(self, precision: str, device: str) -> int:
        """0: it runs elsewhere."""
        return 0

    def facts(self) -> dict[str, str]:
        """See contract.PolicySource. Asks the server for its models and sends nothing else."""
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
        """The policy, after a probe unless this address, model and card passed one. Raises as `check` and `probe`."""
        self.check_yes()
        card, penalty = self.card, 1.0
        if self._card is not None and Path(self._card).is_dir() and card.generation_config:
            penalty = read_generation(Path(self._card)).repetition_penalty
        policy = RemotePolicy(self.connection, self.chosen(), card, self._patience, penalty)
        self.probe(policy)
        return policy

    def probe(self, policy: RemotePolicy) -> str:
        """The probe's result in words, kept from an earlier probe if there was one. Raises ModelError if it fails."""
        kept, key = _settings().get("probed"), self._probed_as(policy.model)
        probed = kept if isinstance(kept, dict) else {}
        if isinstance(probed.get(key), str):
            return str(probed[key])
        findings = probe(policy, self.cancelled)
        findings.check()
        _keep(probed={**probed, key: findings.words})
        return findings.words

    def check_yes(self) -> None:
        """Raise InputError if pictures would leave this machine without consent."""
        if self.needs_yes:
            raise InputError(
                "pictures would be sent to another machine",
                value=self.connection.base,
                remedy=f"It would receive {WHAT_IS_SENT}. To allow this: --send-pictures-to {self.host} in the "
                "terminal; in Slicer, choose the server again under Models.",
            )

    def _probed_as(self, model: str) -> str:
        about = json.dumps([self.connection.base, model, card_to_json(self.card)], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:32]


def settings_file() -> Path:
    """The file that keeps consent and probes."""
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
    """Update the settings file. If that fails, the question is only asked again."""
    path = settings_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**_settings(), **values})
    except (OSError, OutputError):
        return
