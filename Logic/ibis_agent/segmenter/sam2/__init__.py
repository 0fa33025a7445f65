"""SAM2 and MedSAM2, on the network of the sam2 package."""

# From Meta's repository, as an archive of one commit, which needs no git. On PyPI there is a third party's upload.
ARCHIVE = "https://github.com/facebookresearch/sam2/archive/2b90b9f5ceec907a1c18123530e92e794ad901a4.zip"
REQUIREMENT = f"SAM-2@{ARCHIVE}"
# Without dependencies, because torchvision is not needed. Without build isolation, which would download another PyTorch
# of several gigabytes.
PIP_OPTIONS = ("--no-deps", "--no-build-isolation")
HOW_TO_INSTALL = f"pip install {' '.join(PIP_OPTIONS)} {REQUIREMENT}"
