"""The parts that use the MRML scene: nodes of a run, marks, masks, accepting, exporting, geometry."""
