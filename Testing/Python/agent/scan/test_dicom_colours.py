"""A DICOM picture in colour is read as a colour JPEG is; what cannot be is refused with what to do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import write_slice
from ibis_agent.errors import InputError
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import cut
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless
from scan_files import RAW, refused

SECONDARY, ULTRASOUND = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.6.1"
Y, X = np.mgrid[:24, :32]
RGB = np.stack([8 * X, 10 * Y, 255 - 8 * X], axis=2).astype(np.uint8)


def write(file: Path, pixels: bytes, photometric: str = "RGB", **tags: Any) -> Path:
    """One picture of the size of RGB, three values of 8 bits a pixel."""
    colours = {
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": photometric,
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "RescaleSlope": None,
        "RescaleIntercept": None,
        "Modality": "US",
        "PixelData": pixels,
    }
    write_slice(file, np.zeros(RGB.shape[:2]), None, sop_class=ULTRASOUND, **{**colours, **tags})
    return file


def compressed(file: Path, data: bytes, syntax: UID, photometric: str) -> Path:
    write(file, RGB.tobytes(), photometric)
    image = pydicom.dcmread(file)
    image.PixelData = encapsulate([data])
    image["PixelData"].is_undefined_length = True
    image.file_meta.TransferSyntaxUID = syntax
    image.save_as(file)
    return file


def encoded(kind: str, **options: Any) -> bytes:
    held = io.BytesIO()
    Image.fromarray(RGB).save(held, kind, **options)
    return held.getvalue()


def test_rgb_is_the_picture_whichever_way_its_planes_lie(tmp_path: Path) -> None:
    one = load_scan(write(tmp_path / "a.dcm", RGB.tobytes()))
    other = load_scan(
        write(
            tmp_path / "b.dcm", RGB.transpose(2, 0, 1).tobytes(), PlanarConfiguration=1, SOPClassUID=SECONDARY
        )
    )
    assert one.kind == other.kind == "picture" and one.modality == "US"
    assert np.array_equal(one.voxels, RGB) and np.array_equal(other.voxels, RGB)
    assert np.array_equal(cut(one).rgb, RGB)
    assert one.notes == ("a colour image: measurements are in pixels",)


def test_ybr_is_shown_in_its_colours(tmp_path: Path) -> None:
    ybr = convert_color_space(RGB, "RGB", "YBR_FULL")
    scan = load_scan(write(tmp_path / "a.dcm", ybr.tobytes(), "YBR_FULL"))
    assert np.abs(scan.voxels.astype(int) - RGB).max() <= 2
    pairs = np.empty((24, 16, 4), np.uint8)  # Y1 Y2 Cb Cr, as DICOM has YBR_FULL_422
    pairs[..., 0], pairs[..., 1] = ybr[:, ::2, 0], ybr[:, 1::2, 0]
    pairs[..., 2:] = ybr[:, ::2, 1:]
    halved = load_scan(write(tmp_path / "b.dcm", pairs.tobytes(), "YBR_FULL_422"))
    assert np.abs(halved.voxels.astype(int) - RGB).max() <= 12


def test_compressed_colours_are_those_of_the_picture(tmp_path: Path) -> None:
    lossy = compressed(tmp_path / "a.dcm", encoded("JPEG", quality=95), JPEGBaseline8Bit, "YBR_FULL_422")
    assert np.abs(load_scan(lossy).voxels.astype(int) - RGB).mean() < 3
    exact = compressed(
        tmp_path / "b.dcm", encoded("JPEG2000", irreversible=False, mct=1), JPEG2000Lossless, "YBR_RCT"
    )
    assert np.array_equal(load_scan(exact).voxels, RGB)
    image = pydicom.dcmread(write(tmp_path / "c.dcm", RGB.tobytes()))
    image.compress(RLELossless)
    image.save_as(tmp_path / "c.dcm")
    assert np.array_equal(load_scan(tmp_path / "c.dcm").voxels, RGB)


def test_what_only_gdcm_decodes_is_read_too(tmp_path: Path) -> None:
    import SimpleITK as sitk

    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor("JPEG")
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.Execute(sitk.GetImageFromArray(RGB, isVector=True))
    assert pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(load_scan(tmp_path / "a.dcm").voxels, RGB)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    table = np.arange(256, dtype=np.uint16)
    tables = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, values in (("Red", table), ("Green", 255 - table), ("Blue", table // 2))
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", (values * 257).astype("<u2").tobytes()))
    }
    grey = (8 * X).astype(np.uint8)
    file = write(tmp_path / "a.dcm", RGB.tobytes())
    image = pydicom.dcmread(file)
    del image.PlanarConfiguration
    image.PhotometricInterpretation, image.SamplesPerPixel = "PALETTE COLOR", 1
    image.PixelData = grey.tobytes()
    for key, value in tables.items():
        image.add_new(key, "OW" if key.endswith("Data") else "US", value)
    image.save_as(file)
    assert np.array_equal(load_scan(file).voxels, np.stack([grey, 255 - grey, grey // 2], axis=2))


def test_a_folder_with_one_picture_is_that_picture(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", RGB.tobytes())
    assert np.array_equal(load_scan(tmp_path).voxels, RGB)
    for n in range(3):
        write_slice(tmp_path / f"{n}.dcm", RAW[n], (0, 0, 3 * n), series="1.2.9")
    refused(tmp_path, "2 series", "1 files, in colour")
    assert load_scan(tmp_path, series="1.2.9").voxels.shape == (10, 8, 3)
    assert load_scan(tmp_path, series="1.2.3.4").kind == "picture"


def test_what_is_not_one_picture_is_refused_by_name(tmp_path: Path) -> None:
    film = write(tmp_path / "film.dcm", RGB.tobytes() * 3, NumberOfFrames=3)
    refused(film, "several colour frames", "3 frames", "PNG")
    refused(
        write(tmp_path / "odd.dcm", RGB.tobytes() * 2, "CMYK", SamplesPerPixel=4),
        "colour format",
        "CMYK",
    )
    refused(write(tmp_path / "flat.dcm", bytes(RGB.size)), "nothing to see")
    with pytest.raises(InputError, match=r"cut off|decoded"):
        load_scan(write(tmp_path / "short.dcm", RGB.tobytes()[:-300]))
    for name in ("film.dcm", "odd.dcm", "flat.dcm", "short.dcm"):
        (tmp_path / name).unlink()
    write(tmp_path / "a.dcm", RGB.tobytes())
    write(tmp_path / "b.dcm", RGB[::-1].tobytes())
    refused(tmp_path, "colour images", "2 images", "Give the file of a single image")
