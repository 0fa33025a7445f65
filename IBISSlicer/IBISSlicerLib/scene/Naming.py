"""Name, colour and terminology of a segment, from the question or answer."""

from __future__ import annotations

from ibis_agent.mask.structures import colour_for, name_for, structure_for


def nameSegment(segment, question: str, answer: str = "", name: str = "") -> None:
    """Give a vtkSegment its name, colour, terminology, and a note of how it was made.

    :param name: overrides the name from question and answer.
    """
    segment.SetName(name or name_for(question, answer))
    segment.SetColor(*(part / 255 for part in colour_for(question, answer)))
    structure = structure_for(question, answer)
    terminology = structure.terminology() if structure else None
    if terminology:
        segment.SetTerminology(terminology)
    # DICOM SEG records how a segment was made; the default is manual.
    segment.SetTag("DICOM.SegmentAlgorithmType", "SEMIAUTOMATIC")
    segment.SetTag("DICOM.SegmentAlgorithmName", "IBISSlicer")
