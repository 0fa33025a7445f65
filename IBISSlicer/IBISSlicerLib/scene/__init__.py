"""What touches the MRML scene: the nodes of a run, marks, masks, accepting, exporting, geometry."""
