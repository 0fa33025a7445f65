"""The errors shown to people.

Errors name the file, the value and the remedy. Exceptions of libraries are translated where the library is called, so
that only these classes leave the package.
"""

from __future__ import annotations

import os
from typing import Any

_LONGEST_VALUE = 160


class IbisError(Exception):
    """A problem that the user can solve.

    `str(error)` reads ``FILE: problem (got VALUE). REMEDY``; the parts stay available as attributes.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | os.PathLike[str] | None = None,
        value: Any = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else os.fspath(file)
        self.value = value
        self.remedy = remedy
        super().__init__(problem)

    def __str__(self) -> str:
        text = self.problem if self.file is None else f"{self.file}: {self.problem}"
        if self.value is not None:
            text += f" (got {_shown(self.value)})"
        if not text.endswith((".", "!", "?")):
            text += "."
        return text if self.remedy is None else f"{text} {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled with their positional arguments; ours are keywords.
        return _rebuild, (type(self), self.problem, self.file, self.value, self.remedy)


class InputError(IbisError):
    """An unusable scan, picture, number or text from outside."""


class ModelError(IbisError):
    """A checkpoint that cannot be loaded, or a model that failed while it ran."""


class OutputError(IbisError):
    """A file or folder that cannot be written."""


class ReplyError(IbisError):
    """A reply of the policy without a valid action."""


class Cancelled(IbisError):  # noqa: N818 - requested, not a failure
    """The user stopped the work."""

    def __init__(self, problem: str = "stopped on request", **parts: Any) -> None:
        super().__init__(problem, **parts)


def _shown(value: Any) -> str:
    """`value` on one line, shortened to _LONGEST_VALUE characters."""
    text = str(value[:_LONGEST_VALUE] if isinstance(value, (str, bytes)) else value)
    if not text.isprintable() or text != text.strip() or not text:
        text = repr(text)  # line breaks, white space and control characters are escaped
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _rebuild(
    kind: type[IbisError], problem: str, file: str | None, value: Any, remedy: str | None
) -> IbisError:
    return kind(problem, file=file, value=value, remedy=remedy)
