"""One reader per kind of file, each from a path to a Scan. Called by scan.load_scan only.

Each looks at the header first, refuses what cannot be used, and decodes the voxels once.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .geometry import MOST_VOXELS, check_affine
from .scan import Scan
from .scan_photograph import read_photograph

SUFFIXES = (".png", ".jpg", ".jpeg", ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz", ".dcm")
_READABLE = (
    "Readable are PNG, JPEG, NIfTI (.nii, .nii.gz), NRRD, MetaImage (.mha, .mhd), .npz, and DICOM folders."
)
_RENAME = "Give the file its right ending, or export the scan again."

Reader = Callable[[Path, "str | None"], Scan]


def reader_for(path: Path) -> Reader:
    """The reader for what stands at `path`. Raises InputError for an unknown ending, or one that lies."""
    if path.is_dir():
        from .scan_dicom import read_dicom_folder

        return read_dicom_folder
    if not path.is_file():
        raise InputError("is neither a file nor a folder", file=path, mend=_READABLE)
    suffix = suffix_of(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror or error}", file=path, mend="Check its permissions."
        ) from error
    if not head:
        raise InputError("the file is empty", file=path, mend="Export or copy it again.")
    contents = _contents(head)
    if suffix in ("", ".dcm", ".ima") and contents == "DICOM":
        from .scan_dicom import read_dicom_file

        return read_dicom_file
    if suffix not in _READERS:
        raise InputError(
            "scans of this kind cannot be read", file=path, value=suffix or "no ending", mend=_READABLE
        )
    expected, reader = _READERS[suffix]
    if contents not in expected:
        article = "an" if contents[:1] in "aeiou" or contents.startswith("NRRD") else "a"
        what = f"it holds {article} {contents} instead" if contents else "its beginning shows something else"
        raise InputError(f"is no {expected[0]} file: {what}", file=path, mend=_RENAME)
    return reader


def suffix_of(path: Path) -> str:
    """The ending that tells the kind of the file, lower case; `.nii.gz` counts as one."""
    name = path.name.lower()
    return next((each for each in (".nii.gz", ".seg.nrrd") if name.endswith(each)), path.suffix.lower())


def _contents(head: bytes) -> str:
    """What the first 512 bytes of a file show it to be; empty where that is not known."""
    for magic, kind in (
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x1f\x8b", "gzip"),
        (b"NRRD000", "NRRD"),
        (b"PK\x03\x04", "zip"),
        (b"PK\x05\x06", "zip"),
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"%PDF", "PDF"),
        (b"\x89HDF", "HDF5"),
        (b"\x93NUMPY", "npy"),
    ):
        if head.startswith(magic):
            return kind
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0":
        return "NIfTI"
    start = head.lstrip()[:60].lower()
    if start.startswith((b"objecttype", b"ndims", b"comment")) and b"=" in start:
        return "MetaImage"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "web page"
    return ""


def read_nifti(path: Path, series: str | None = None) -> Scan:
    """A NIfTI file in its own index order, with its own affine (sform before qform, as nibabel has it)."""
    import nibabel

    try:
        image: Any = nibabel.load(path, mmap=False)
        header = image.header
        kind, units = header.get_data_dtype(), header.get_xyzt_units()[0]
        shape = _three_axes(image.shape, path)
    except InputError:
        raise
    except Exception as error:  # nibabel raises a dozen unrelated kinds on damaged headers
        raise damaged(path, error) from error
    _check_kind(kind, path)
    voxels = int(np.prod(shape, dtype=np.int64))
    _check_size(shape, path)
    held = path.stat().st_size
    # Deflate packs at most 1032 bytes into one: what claims to hold more is cut off or lies.
    if voxels * kind.itemsize > (held * 1032 if suffix_of(path) == ".nii.gz" else held):
        raise InputError(
            "the file is cut off",
            file=path,
            value=f"{held} bytes for {_by(shape)} voxels",
            mend="Copy or export it again.",
        )
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= {"meter": 1000.0, "micron": 0.001}.get(units, 1.0)
    affine = check_affine(affine, path)
    try:
        source = image.dataobj
        if source.slope == 1 and source.inter == 0:
            array = source.get_unscaled()
        else:
            array = source.get_scaled(dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, error) from error
    return Scan(_native(array.reshape(shape)), affine, "volume", path, stem(path))


def read_itk(path: Path, series: str | None = None) -> Scan:
    """An NRRD or MetaImage file; ITK's LPS becomes RAS."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO" if suffix_of(path) in (".mha", ".mhd") else "NrrdImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise damaged(path, error) from error
    check_itk_header(reader, path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise damaged(path, error) from error
    return Scan(*voxels_and_affine(image, path), "volume", path, stem(path))


def check_itk_header(reader: Any, path: Path) -> None:
    """Refuse what a SimpleITK reader's header shows to be no scalar volume. Raises InputError."""
    import SimpleITK as sitk

    if reader.GetNumberOfComponents() > 1:
        raise InputError(
            "the volume is in colour or holds vectors",
            file=path,
            value=f"{reader.GetNumberOfComponents()} values a voxel",
            mend="Convert it to one grey value a voxel, or save a slice as a PNG.",
        )
    pixel = reader.GetPixelID()
    if pixel == sitk.sitkUnknown or "complex" in sitk.GetPixelIDValueAsString(pixel):
        raise InputError(
            "the voxels are of a kind that is no grey value", file=path, mend="Convert them to integers."
        )
    _check_size(_three_axes(reader.GetSize(), path), path)


def voxels_and_affine(image: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The (I, J, K) voxels and the RAS affine of a SimpleITK image of two, three, or four dimensions."""
    import SimpleITK as sitk

    shape = _three_axes(image.GetSize(), path)
    dimension = image.GetDimension()
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)
    n = min(dimension, 3)
    affine[:n, :n] = direction[:n, :n] * np.array(image.GetSpacing())[:n]
    affine[:n, 3] = image.GetOrigin()[:n]
    affine[:2] *= -1
    array = sitk.GetArrayFromImage(image)
    return _native(array.transpose().reshape(shape)), check_affine(affine, path)


def read_npz(path: Path, series: str | None = None) -> Scan:
    """A MedSAM2-style archive: `imgs` (slices, H, W), `spacing` (x, y, z) mm, and `direction` and `origin`
    (LPS).

    The voxels come out as (I, J, K) with i along W. 8-bit images are shown as they are: they were windowed
    before.
    """
    wanted = {"imgs": True, "spacing": True, "direction": False, "origin": False}
    found: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            for key, needed in wanted.items():
                if f"{key}.npy" in names:
                    found[key] = _member(archive, f"{key}.npy", path)
                elif needed:
                    raise InputError(
                        f"the archive has no array `{key}`",
                        file=path,
                        value=", ".join(sorted(names))[:120],
                        mend="A MedSAM2-style archive holds imgs (slices, H, W) and spacing (x, y, z).",
                    )
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise damaged(path, error) from error
    images = found["imgs"]
    _check_kind(images.dtype, path)
    if images.ndim != 3:
        raise InputError(
            "`imgs` is not (slices, H, W)", file=path, value=images.shape, mend="Save one grey volume."
        )
    spacing = _numbers(found["spacing"], 3, "spacing", path)
    direction = _numbers(found.get("direction", np.eye(3)), 9, "direction", path).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = _numbers(found.get("origin", np.zeros(3)), 3, "origin", path)
    affine[:2] *= -1
    window = (0.0, 255.0) if images.dtype == np.uint8 else None
    return Scan(
        _native(images.transpose()), check_affine(affine, path), "volume", path, stem(path), window=window
    )


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """One array of a .npz, after its header was compared with the room that the archive says it takes."""
    information = archive.getinfo(name)
    with archive.open(information) as stream:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, kind = read(stream)
        if kind.hasobject:
            raise InputError(f"`{name}` holds Python objects, which are never loaded", file=path)
        count = 1
        for side in shape:
            count *= side
        if count < 1:
            raise InputError(f"`{name}` is empty", file=path, value=shape)
        if count > MOST_VOXELS or stream.tell() + count * kind.itemsize != information.file_size:
            raise InputError(
                f"`{name}` is not as long as it says", file=path, value=shape, mend="Copy the file again."
            )
    with archive.open(information) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _numbers(array: np.ndarray, count: int, name: str, path: Path) -> np.ndarray:
    if array.size != count or array.dtype.kind not in "iuf":
        raise InputError(f"`{name}` is not {count} numbers", file=path, value=array.tolist())
    return array.astype(np.float64).ravel()


def _three_axes(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """Three axes from two to N; more are allowed only where they hold one entry."""
    sides = [int(side) for side in shape]
    if len(sides) < 2 or min(sides) < 1:
        raise InputError("the volume is empty or has too few axes", file=path, value=_by(sides))
    if any(side != 1 for side in sides[3:]):
        raise InputError(
            f"the volume has {len(sides)} axes",
            file=path,
            value=_by(sides),
            mend="Save one time point or channel as a volume of its own.",
        )
    sides = [*sides, 1][:3]
    return sides[0], sides[1], sides[2]


def _check_kind(kind: np.dtype, path: Path) -> None:
    if kind.names is not None:
        raise InputError("the volume is in colour", file=path, mend="Convert it to one grey value a voxel.")
    if kind.kind not in "iufb":
        raise InputError(
            "the voxels are no grey values", file=path, value=kind, mend="Convert them to integers."
        )


def _check_size(shape: tuple[int, int, int], path: Path) -> None:
    if int(np.prod(shape, dtype=object)) > MOST_VOXELS:
        raise InputError(
            "the volume is too large", file=path, value=_by(shape), mend="Crop it to the part of interest."
        )


def _native(array: np.ndarray) -> np.ndarray:
    """Integers as they are, in this machine's byte order; everything else as float32."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "iu":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def damaged(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    if "ITK ERROR" in reason or "itk::ERROR" in reason:
        reason = reason.rsplit("ERROR:", 1)[-1].strip()
    return InputError(
        "the file cannot be read, it may be cut off or damaged",
        file=path,
        value=reason[:160] or type(error).__name__,
        mend="Copy or export it again.",
    )


def _by(sides: Sequence[int]) -> str:
    return " × ".join(str(side) for side in sides)


def stem(path: Path) -> str:
    name = path.name
    suffix = suffix_of(path)
    return name[: -len(suffix)] if suffix else name


_READERS: dict[str, tuple[tuple[str, ...], Reader]] = {
    ".png": (("PNG",), read_photograph),
    ".jpg": (("JPEG",), read_photograph),
    ".jpeg": (("JPEG",), read_photograph),
    ".nii": (("NIfTI",), read_nifti),
    ".nii.gz": (("gzip",), read_nifti),
    ".nrrd": (("NRRD",), read_itk),
    ".seg.nrrd": (("NRRD",), read_itk),
    ".nhdr": (("NRRD",), read_itk),
    ".mha": (("MetaImage",), read_itk),
    ".mhd": (("MetaImage",), read_itk),
    ".npz": (("zip",), read_npz),
}
