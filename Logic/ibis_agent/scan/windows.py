"""Named CT windows, as on radiology workstations: (minimum, maximum) in Hounsfield units."""

from __future__ import annotations

PRESETS: dict[str, tuple[float, float]] = {
    "abdomen": (-160, 240),
    "angio": (0, 600),
    "bone": (-500, 1300),
    "brain": (0, 80),
    "liver": (-45, 105),
    "lung": (-1350, 150),
    "mediastinum": (-125, 225),
    "soft-tissue": (-150, 250),
    "stroke": (20, 60),
    "subdural": (-25, 175),
}
