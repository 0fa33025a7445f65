"""Masks: run lengths, files, and known structures."""

# The file formats for masks, and their extensions.
MASK_FORMATS = {
    "nii.gz": ".nii.gz",
    "nrrd": ".nrrd",
    "seg.nrrd": ".seg.nrrd",
    "png": ".png",
    "dicom-seg": ".seg.dcm",
    "rtstruct": ".rtstruct.dcm",
}


def ending_of(name: str) -> str:
    """The longest of these extensions at the end of a file's name."""
    return max((each for each in MASK_FORMATS.values() if name.endswith(each)), key=len)
