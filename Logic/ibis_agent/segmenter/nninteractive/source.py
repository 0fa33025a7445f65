"""An nnInteractive server before it is opened, `nninteractive:http://HOST:PORT`, and consent to send slices."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import ipaddress
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ibis_agent.errors import InputError, ModelError

if TYPE_CHECKING:
    from ibis_agent.segmenter.nninteractive.segmenter import NnInteractive

PREFIX = "nninteractive:"
AGREED_VARIABLE = "IBIS_SEND_SLICES_TO"
WHAT_IS_SENT = (
    "all slices as pictures in the displayed window, the clicks and masks, "
    "but no names and no header of the scan"
)
WEIGHTS_LICENCE = (
    "CC BY-NC-SA 4.0, for noncommercial use only"  # of the published ones; the code is Apache-2.0
)
REQUIREMENT = "nninteractive-client>=2.6,<3"
_PUBLISHED = f"its published weights are {WEIGHTS_LICENCE}"
_ADDRESS = "For example nninteractive:http://localhost:1527, the address of nninteractive-server."


class NnInteractiveAddress:
    """See segmenter.find."""

    kind = "nnInteractive on a server"

    def __init__(self, where: str, agreed: str = "") -> None:
        """agreed: the host that the user agreed to send slices to. Raises ModelError for an invalid address."""
        self.address = where.removeprefix(PREFIX).rstrip("/")
        try:
            parts = urlsplit(self.address)
            self.host, _ = (parts.hostname or "").lower(), parts.port
        except ValueError as error:
            raise ModelError("is not an address", value=where, remedy=_ADDRESS) from error
        if parts.scheme not in ("http", "https") or not self.host or parts.username or parts.query:
            raise ModelError("is not an nnInteractive address", value=where, remedy=_ADDRESS)
        self._agreed = agreed or os.environ.get(AGREED_VARIABLE, "")

    @property
    def local(self) -> bool:
        """Whether the server is this machine."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def inspect(self) -> NnInteractiveAddress:
        """Raise InputError without consent, and ModelError if the client is not installed."""
        if not self.local and self._agreed != self.host:
            raise InputError(
                "slices would be sent to another machine",
                value=self.address,
                remedy=f"It would receive {WHAT_IS_SENT}. To allow this: --send-slices-to {self.host} in the "
                "terminal; in Slicer, choose the server again under Models.",
            )
        if importlib.util.find_spec("nnInteractive") is None:
            raise ModelError(
                "nnInteractive's client is not installed",
                remedy=f"Run: pip install 'ibis-agent[nninteractive]' or pip install '{REQUIREMENT}'.",
            )
        return self

    def __str__(self) -> str:
        return f"{self.kind} at {self.address}; {_PUBLISHED}"

    def facts(self) -> dict[str, str]:
        """Facts for `ibis-agent info`, without asking the server."""
        try:
            client = importlib.metadata.version("nninteractive-client")
        except importlib.metadata.PackageNotFoundError:
            client = ""
        return {
            "model": f"{self.kind}: a click or a box gives the mask in all slices",
            "address": self.address,
            "runs on": "this machine" if self.local else f"{self.host}, which is sent {WHAT_IS_SENT}",
            "client": f"nninteractive-client {client}" if client else "not installed",
            "licence": _PUBLISHED,
        }

    def run_bytes(self) -> int:
        """0: it runs elsewhere."""
        return 0

    def open(self, device: str = "auto", precision: str = "auto", first_box: bool = False) -> NnInteractive:
        """Open a session on the server. Raises as `inspect`, and ModelError if the server cannot be reached."""
        self.inspect()
        from ibis_agent.segmenter.nninteractive.segmenter import NnInteractive
        from ibis_agent.segmenter.nninteractive.session import Session

        return NnInteractive(Session(self.address))
