"""Masks: run lengths, files, and the structures that we know by name."""

# The kinds of files that a mask can be written as, and how their names end.
MASK_FORMATS = {
    "nii.gz": ".nii.gz",
    "nrrd": ".nrrd",
    "seg.nrrd": ".seg.nrrd",
    "png": ".png",
    "dicom-seg": ".seg.dcm",
    "rtstruct": ".rtstruct.dcm",
}
