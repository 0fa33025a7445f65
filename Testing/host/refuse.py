"""How the host says no.

Every stand-in refuses what it does not imitate, so that a test cannot pass on an invented API. Nothing
here knows Qt or MRML.
"""

from __future__ import annotations

from typing import Any


class NotSimulatedError(AttributeError):
    """The simulated host does not imitate this: it may or may not exist in Slicer."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(
            f"{what} is not simulated by the test host. {hint}"
            "If Slicer has it, add it to Testing/host with a look at Slicer's own sources."
        )


class Refusing:
    """Base of plain (non-Qt) stand-ins: unknown names are refused, and nothing can be added from outside."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy, pickle and friends probe these
            raise AttributeError(name)
        raise NotSimulatedError(f"{type(self).__name__}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise NotSimulatedError(f"Setting {type(self).__name__}.{name}")
        super().__setattr__(name, value)
