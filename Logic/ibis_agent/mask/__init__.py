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
