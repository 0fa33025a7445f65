"""Settings kept between sessions of Slicer: models, device, Python, recent questions.

They are stored in the application settings under "IBISSlicer/". The state of a run is stored in the scene
(SceneRun.py).
"""

from __future__ import annotations

import slicer
from ibis_agent.engine.job import ModelSettings

DEMO = "demo"
EXAMPLES = (
    "Segment the liver.",
    "Segment the left kidney.",
    "Segment the spleen.",
    "Is there a lesion in the liver? Segment it.",
)
_MOST_RECENT = 8


def _text(key: str, default: str = "") -> str:
    value = slicer.app.userSettings().value(f"IBISSlicer/{key}", default)
    return default if value is None else str(value)


def _write(key: str, value: object) -> None:
    slicer.app.userSettings().setValue(f"IBISSlicer/{key}", value)


def models() -> ModelSettings:
    """The models chosen by the user; the demonstration models by default."""
    return ModelSettings(
        policy=_text("policy", DEMO),
        segmenter=_text("segmenter", DEMO),
        segmenter_config=_text("segmenterConfig"),
        device=_text("device", "auto"),
        precision=_text("precision", "auto"),
        model=_text("serverModel"),
        card=_text("serverCard"),
        send_pictures_to=_text("sendPicturesTo"),
        send_slices_to=_text("sendSlicesTo"),
    )


def setModels(settings: ModelSettings) -> None:
    _write("policy", settings.policy)
    _write("segmenter", settings.segmenter)
    _write("segmenterConfig", settings.segmenter_config)
    _write("device", settings.device)
    _write("precision", settings.precision)
    _write("serverModel", settings.model)
    _write("serverCard", settings.card)
    _write("sendPicturesTo", settings.send_pictures_to)
    _write("sendSlicesTo", settings.send_slices_to)


def python() -> str:
    """The user's own Python for the worker; empty for Slicer's."""
    return _text("python")


def setPython(path: str) -> None:
    _write("python", path)


def usesShownWindow() -> bool:
    """Whether the agent uses the window/level of the view instead of its policy's default."""
    return _text("window", "policy") == "shown"


def setUsesShownWindow(shown: bool) -> None:
    _write("window", "shown" if shown else "policy")


def recentQuestions() -> list[str]:
    """Newest first."""
    return [line for line in _text("recentQuestions").split("\n") if line]


def rememberQuestion(question: str) -> None:
    line = " ".join(question.split())
    if line:
        kept = [each for each in recentQuestions() if each != line]
        _write("recentQuestions", "\n".join([line, *kept][:_MOST_RECENT]))
