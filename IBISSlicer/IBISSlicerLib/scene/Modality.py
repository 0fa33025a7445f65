"""The modality of a volume: from its DICOM headers, from the user, or guessed from its grey values; and how to show it.

The user's choice is stored in the volume node, and so in the scene.
"""

from __future__ import annotations

import slicer
from ibis_agent.scan.load import check_modality
from ibis_agent.scan.modality import like_ct, likeness_words

from .Geometry import isColour
from .SubjectHierarchy import modalityOf

CHOICES = {
    "CT": "Computed tomography",
    "MR": "Magnetic resonance",
    "PT": "Positron emission tomography",
    "NM": "Nuclear medicine",
    "US": "Ultrasound",
    "CR": "Computed radiography",
    "DX": "Digital radiography",
    "MG": "Mammography",
    "XA": "Angiography",
}
_ATTRIBUTE = "IBISSlicer.Modality"
_counted: dict[
    str, tuple[int, tuple[bool, str]]
] = {}  # by node ID: modification time of the voxels, and what they look like


def takeAs(volumeNode, modality: str | None) -> None:
    """Store the modality chosen by the user; None removes it. Raises InputError."""
    volumeNode.SetAttribute(_ATTRIBUTE, check_modality(modality) if modality else None)


def takenAs(volumeNode) -> str | None:
    return volumeNode.GetAttribute(_ATTRIBUTE) or None


def modalityFields(volumeNode) -> dict:
    """The fields for the worker: modality, taken_as and likeness; see question.cut_picture."""
    named, taken = modalityOf(volumeNode), takenAs(volumeNode)
    fields: dict = {"modality": named, "taken_as": taken}
    if not (named or taken or isColour(volumeNode)):
        fields["likeness"] = list(_likeness(volumeNode))
    return fields


def mayBeCt(volumeNode) -> bool:
    """Whether the grey values are taken as Hounsfield units."""
    fields = modalityFields(volumeNode)
    named = fields["taken_as"] or fields["modality"]
    return named == "CT" if named else bool(fields.get("likeness", (False,))[0])


def modalityWords(fields: dict) -> tuple[str, str]:
    """(the button's text, how it was determined), from the fields of `modalityFields`."""
    named, taken = str(fields.get("modality") or ""), str(fields.get("taken_as") or "")
    if taken and taken != named:
        return taken, f"Taken as {taken}, as you chose." + (
            f" The DICOM headers say {named}." if named else ""
        )
    if named:
        return named, f"{named}, according to the DICOM headers."
    if not fields.get("likeness"):
        return "?", "The modality is unknown."
    words = likeness_words(tuple(fields["likeness"]))
    return ("CT?" if fields["likeness"][0] else "not CT?"), f"{words[0].upper()}{words[1:]}."


def _likeness(volumeNode) -> tuple[bool, str]:
    changed = int(volumeNode.GetImageData().GetMTime())
    known = _counted.get(volumeNode.GetID())
    if known is None or known[0] != changed:
        _counted[volumeNode.GetID()] = known = (
            changed,
            like_ct(slicer.util.arrayFromVolume(volumeNode).transpose()),
        )
    return known[1]
