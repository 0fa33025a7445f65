"""SAM 2 and MedSAM2, on the network of the sam2 package."""

# SAM 2 from Meta's own repository, as an archive of one commit: that needs no git. PyPI has a third party's upload.
ARCHIVE = "https://github.com/facebookresearch/sam2/archive/2b90b9f5ceec907a1c18123530e92e794ad901a4.zip"
REQUIREMENT = f"SAM-2@{ARCHIVE}"
# Without dependencies: it asks for torchvision, which is not needed. Without build isolation: that would download
# another PyTorch of several gigabytes just to build a few Python files.
PIP_OPTIONS = ("--no-deps", "--no-build-isolation")
HOW_TO_INSTALL = f"pip install {' '.join(PIP_OPTIONS)} {REQUIREMENT}"
