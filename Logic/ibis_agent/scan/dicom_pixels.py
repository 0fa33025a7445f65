"""The voxels of DICOM frames: each is decoded, and rescaled with its own slope and intercept.

Uncompressed pixels are read directly; GDCM, which is part of SimpleITK, decodes the compressed ones.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.errors import InputError
from ibis_agent.scan.checks import check_length, damaged
from ibis_agent.scan.dicom_header import Frame, Header
from ibis_agent.scan.dicom_values import dataset, quietly

_KINDS = (np.int16, np.uint16, np.int32)


def check_lengths(headers: Sequence[Header]) -> None:
    """Refuse files that are shorter than announced in their headers, before allocating memory."""
    for header in headers:
        least = header.shape[0] * header.shape[1] * len(header.frames) * header.stored[0] // 8
        if header.colour and header.colour != "PALETTE COLOR":
            least *= 2 if header.colour == "YBR_FULL_422" else 3
        check_length(header.file, least, packing=10_000 if header.encoded else 1032)


def voxels_of(frames: Sequence[Frame], headers: dict[Path, Header]) -> np.ndarray:
    """(rows, columns, frames) values of the frames in order; each file is read once.

    The smallest of int16, uint16 and int32 that can hold them if every slope and intercept is a whole number, otherwise
    float32. Raises InputError.
    """
    where: dict[Path, list[tuple[int, Frame]]] = {}
    for n, frame in enumerate(frames):
        where.setdefault(frame.file, []).append((n, frame))
    rows, columns = headers[frames[0].file].shape
    whole = all(float(part).is_integer() for frame in frames for part in (frame.slope, frame.intercept))
    out: np.ndarray | None = None
    for file, wanted in where.items():
        stored = _stored(headers[file])
        for n, frame in wanted:
            values = _rescaled(stored[frame.index], frame, whole)
            if out is None:
                out = np.zeros((rows, columns, len(frames)), values.dtype, order="F")
            elif out.dtype != values.dtype:
                out = out.astype(_common(out.dtype, values.dtype), order="F")
            out[:, :, n] = values
    assert out is not None
    return out


def colours_of(header: Header) -> np.ndarray:
    """(rows, columns, 3) uint8: a colour image as RGB. Raises InputError."""
    from pydicom.pixels import apply_color_lut, pixel_array

    file = header.file
    try:
        with quietly():
            whole = dataset(file, pixels=True)
            try:
                values = pixel_array(whole)  # converts YBR to RGB
            except (RuntimeError, NotImplementedError):  # no decoder for this compression
                values = _decoded_colours(file)
            if header.colour == "PALETTE COLOR" and values.ndim == 2:
                values = apply_color_lut(values, whole)
                values = values >> 8 if values.dtype.itemsize > 1 else values
            elif header.stored[1] > 8:
                values = values.astype(np.int64) * 255 // (2 ** header.stored[1] - 1)
    except InputError:
        raise
    except Exception as error:  # pydicom raises a dozen unrelated kinds on damaged files
        raise damaged(file, error) from error
    if values.shape != (*header.shape, 3):
        raise damaged(file, ValueError(f"{values.shape} values were decoded"))
    return np.ascontiguousarray(np.clip(values, 0, 255).astype(np.uint8))


def _decoded_colours(file: Path) -> np.ndarray:
    """Decode with GDCM, which supports compressions that pydicom alone does not."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    return np.asarray(sitk.GetArrayFromImage(reader.Execute()))[0]


def _rescaled(stored: np.ndarray, frame: Frame, whole: bool) -> np.ndarray:
    if not whole or stored.dtype.kind == "f":
        return (stored.astype(np.float64) * frame.slope + frame.intercept).astype(np.float32)
    if not (frame.slope == 1 and frame.intercept == 0):
        stored = stored.astype(np.int64) * int(frame.slope) + int(frame.intercept)
    low, high = int(stored.min()), int(stored.max())
    for kind in _KINDS:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return stored.astype(kind)
    return stored.astype(np.float32)


def _common(a: np.dtype, b: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if "f" in (a.kind, b.kind) else np.promote_types(a, b)


def _stored(header: Header) -> np.ndarray:
    """(frames, rows, columns) stored values, before any rescale. Raises InputError."""
    file, shape = header.file, (len(header.frames), *header.shape)
    whole = dataset(file, pixels=True)
    with quietly():
        try:
            raw = _raw(whole, header, shape)
            return _looked_up(raw, whole, file) if "ModalityLUTSequence" in whole else raw
        except InputError:
            raise
        except Exception as error:  # pydicom raises a dozen unrelated kinds on damaged files
            raise damaged(file, error) from error


def _raw(whole: Any, header: Header, shape: tuple[int, ...]) -> np.ndarray:
    file, (allocated, bits, high, signed) = header.file, header.stored
    for keyword, kind in (("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")):
        if keyword in whole:
            return _plain(bytes(whole[keyword].value), whole, kind, shape, file)
    if "PixelData" not in whole:
        raise InputError("the DICOM file contains no readable image", file=file, remedy="Export it again.")
    if header.encoded:
        raw = _decoded(copy.copy(whole), header).reshape(shape)
    else:
        raw = _plain(bytes(whole.PixelData), whole, f"u{allocated // 8}", shape, file)
    if raw.dtype.kind == "f":
        return raw
    # Unused bits may contain an overlay; the bits above the stored ones are not sign-extended.
    up, down = allocated - 1 - high, allocated - bits
    raw = raw.view(f"{'i' if signed else 'u'}{allocated // 8}")
    return np.asarray(np.right_shift(np.left_shift(raw, up), down)) if up or down else raw


def _looked_up(raw: np.ndarray, whole: Any, file: Path) -> np.ndarray:
    """Apply the lookup table that some X-ray images have instead of slope and intercept."""
    from pydicom.pixels import apply_modality_lut

    values = np.asarray(apply_modality_lut(raw, whole))
    if values.shape != raw.shape or values.dtype.kind not in "iuf":
        raise InputError("its lookup table cannot be used", file=file, remedy="Export it again.")
    return values


def _plain(data: bytes, whole: Any, kind: str, shape: tuple[int, ...], file: Path) -> np.ndarray:
    big = str(getattr(whole, "file_meta", {}).get("TransferSyntaxUID", "")) == "1.2.840.10008.1.2.2"
    array = np.frombuffer(data[: len(data) // int(kind[1]) * int(kind[1])], (">" if big else "<") + kind)
    count = int(np.prod(shape))
    if array.size < count:
        raise InputError(
            "a slice in the folder cannot be read; it may be cut off",
            file=file,
            value=f"{array.size} pixels for {count}",
            remedy="Copy the folder again, or remove the file from it.",
        )
    return array[:count].reshape(shape).astype(array.dtype.newbyteorder("="))


def _decoded(whole: Any, header: Header) -> np.ndarray:
    """Decode compressed pixels with GDCM.

    It gets a copy without rescale and inversion, which it would apply to all frames alike, if at all.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    for keyword in ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "DoseGridScaling", *_GROUPS):
        if keyword in whole:
            delattr(whole, keyword)
    whole.PhotometricInterpretation = "MONOCHROME2"
    # As a secondary capture, GDCM does not look for elements that this copy lacks.
    frames = len(header.frames)
    kind = _CAPTURES[(frames > 1, header.stored[0] > 8)]
    whole.file_meta = copy.copy(whole.file_meta)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = kind
    with tempfile.TemporaryDirectory(prefix="ibis-") as folder:
        plain = Path(folder) / "plain.dcm"
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(plain))
        try:
            whole.save_as(plain)
            array = sitk.GetArrayFromImage(reader.Execute())
        except Exception as error:  # pydicom's writer raises many kinds, GDCM a RuntimeError
            raise damaged(header.file, error) from error
    if array.size != frames * header.shape[0] * header.shape[1]:
        raise damaged(header.file, ValueError(f"{array.size} pixels were decoded"))
    unsigned = f"u{header.stored[0] // 8}"
    return array.astype(unsigned, casting="unsafe") if array.dtype.kind in "iu" else array


_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_CAPTURES = {
    (False, False): "1.2.840.10008.5.1.4.1.1.7",
    (False, True): "1.2.840.10008.5.1.4.1.1.7",
    (True, False): "1.2.840.10008.5.1.4.1.1.7.2",
    (True, True): "1.2.840.10008.5.1.4.1.1.7.3",
}


def same_values(a: Frame, b: Frame, headers: dict[Path, Header]) -> bool:
    """Whether two frames have the same values, so that one is a copy of the other."""
    first, second = next(_values((a,), headers)), next(_values((b,), headers))
    return first.shape == second.shape and bool((first == second).all())


def _values(frames: Sequence[Frame], headers: dict[Path, Header]) -> Iterator[np.ndarray]:
    for frame in frames:
        yield _stored(headers[frame.file])[frame.index] * np.float64(frame.slope) + frame.intercept
