"""Finding the pictures and masks that belong together in a folder; the layouts are described in cases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ibis_agent.cases.case import ANY, Case, Labels, Problem, checked, names_for, plain_name
from ibis_agent.errors import InputError
from ibis_agent.scan.checks import stem, suffix_of

_SCANS = (".png", ".jpg", ".jpeg", ".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".nhdr", ".mha", ".mhd", ".npz")
_ENDINGS = ("_labels", "_label", "_mask", "_masks", "_seg", "_segmentation", "_gt", ".seg", "-mask", "-label")
_IMAGE_FOLDERS = ("images", "imagesTr", "image", "imgs", "volumes", "scans")
_MASK_FOLDERS = ("masks", "labels", "labelsTr", "mask", "label", "gts", "annotations")


def in_folder(root: Path, names: Labels | None) -> Iterator[Case | Problem]:
    """The cases of a folder, and problems. names: see `names_for`."""
    for images in _IMAGE_FOLDERS:
        for masks in _MASK_FOLDERS:
            if (root / images).is_dir() and (root / masks).is_dir():
                yield from _two_folders(root, root / images, root / masks, names)
                return
    paths = _scans_in(root)
    taken: set[Path] = set()
    for path in paths:  # one folder per patient
        if path.parent.name == "segmentations":
            taken.add(path)
            beside = [each for each in paths if each.parent == path.parent.parent]
            name = f"{path.parent.parent.relative_to(root).as_posix()}/{stem(path)}".removeprefix("./")
            if len(beside) == 1:
                taken.add(beside[0])
                labels: Labels = {plain_name(stem(path)): (ANY,)}
                yield from checked(Case(name, beside[0], path, labels))
            else:
                text = f"there are {len(beside)} scans beside its folder; there must be one"
                yield Problem("missing", name, str(path), text)
    rest = [each for each in paths if each not in taken]
    bare_names = {path: bare for path in rest if (bare := _without_ending(path)) is not None}
    unmatched: dict[str, list[Path]] = {}
    for path in rest:
        if path not in bare_names:
            unmatched.setdefault(_key(root, path), []).append(path)
    matched: set[str] = set()
    for path, bare in bare_names.items():
        key = _key(root, path.with_name(bare + suffix_of(path)))
        if key in matched:
            yield Problem("duplicate", key, str(path), f"another mask with the same name: {path.name}")
            continue
        those = sorted(unmatched.pop(key, []), key=lambda each: suffix_of(each) != suffix_of(path))
        if not those:
            yield Problem("missing", key, str(path), f"there is no picture {bare} for the mask {path.name}")
            continue
        matched.add(key)
        yield from _second_images(key, those)
        yield from _case_of(root, key, those[0], path, names)
    for key, path in ((name, each) for name, those in unmatched.items() for each in those):
        if suffix_of(path) == ".npz":
            yield from _case_of(root, key, path, path, names)
        else:
            yield Problem("missing", key, str(path), "there is no mask for it")


def _two_folders(root: Path, images: Path, masks: Path, names: Labels | None) -> Iterator[Case | Problem]:
    found: dict[str, list[Path]] = {}
    inside: dict[str, list[tuple[Path, str]]] = {}  # masks/STRUCTURE/NAME, by NAME
    for path in _scans_in(masks):
        key = (path.parent.relative_to(masks) / (_without_ending(path) or stem(path))).as_posix()
        found.setdefault(key, []).append(path)
        structure, slash, rest = key.partition("/")
        if slash:
            inside.setdefault(rest, []).append((path, structure))
    used: set[Path] = set()
    pictures: dict[str, list[Path]] = {}
    channels = images.name.startswith("imagesT") or (root / "dataset.json").is_file()
    for image in _scans_in(images):
        key = (image.parent.relative_to(images) / stem(image)).as_posix()
        channel = re.fullmatch(r"(.*)_(\d{4})", key) if key not in found else None
        if channel is not None and channel[2] == "0000":
            key = channel[1]
        elif channel is not None and channels:
            first = image.with_name(image.name.replace(f"_{channel[2]}.", "_0000."))
            if first.is_file():
                continue  # a further channel of the same case: only the first one is used
        pictures.setdefault(key, []).append(image)
    for key, those in pictures.items():
        image = those[0]
        yield from _second_images(key, those)
        own = found.get(key, [])
        split = [each for each in inside.get(key, []) if each[0] not in own]
        for path in own[:1]:
            used.add(path)
            yield from _case_of(root, key, image, path, names)
        for path in own[1:]:
            used.add(path)
            text = f"another mask with the same name: {path.name}"
            yield Problem("duplicate", key, str(path), text)
        for path, structure in split:
            used.add(path)
            yield from checked(Case(f"{key}/{structure}", image, path, {plain_name(structure): (ANY,)}))
        if not own and not split:
            yield Problem("missing", key, str(image), "there is no mask for it")
    for key, paths in found.items():
        for path in paths:
            if path not in used:
                yield Problem("missing", key, str(path), f"there is no picture for the mask {path.name}")


def _second_images(key: str, images: list[Path]) -> Iterator[Problem]:
    """A problem for each further image with the same name: only the first one is used."""
    for image in images[1:]:
        text = f"another image with the same name: {image.name}; {images[0].name} is used"
        yield Problem("duplicate", key, str(image), text)


def _case_of(root: Path, key: str, image: Path, mask: Path, names: Labels | None) -> Iterator[Case | Problem]:
    try:
        labels, own = names_for(mask, root, names)
    except InputError as error:
        yield Problem("names", key, str(mask), f"{error.problem}. {error.remedy}")
        return
    yield from checked(Case(key, image, mask, labels, own_labels=own))


def _scans_in(folder: Path) -> list[Path]:
    files = (each for each in folder.rglob("*") if each.is_file() and not each.name.startswith("."))
    return sorted(each for each in files if suffix_of(each) in _SCANS)


def _without_ending(path: Path) -> str | None:
    """The picture's name for a mask's name; None if the file is not a mask."""
    name = stem(path) + (".seg" if suffix_of(path) == ".seg.nrrd" else "")
    return next((name[: -len(each)] for each in _ENDINGS if name.endswith(each)), None)


def _key(root: Path, path: Path) -> str:
    return (path.parent.relative_to(root) / stem(path)).as_posix()
