"""Known structures: words for them, a colour, and their code in SNOMED CT.

Used to name and colour a segment from a question or an answer; an unknown structure gets a plain name.

Codes, and most colours, are from the terminology lists of 3D Slicer (SegmentationCategoryTypeModifier-
SlicerGeneralAnatomy.json and -DICOM-Master.json), so that a segment written here is recognised there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ibis_agent.scan.picture import FOREST_GREEN

_GENERAL = "Segmentation category and type - 3D Slicer General Anatomy list"
_MASTER = "Segmentation category and type - DICOM master list"
_REGIONS = "Anatomic codes - DICOM master list"
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Code:
    """A coded concept: value, scheme ("SCT" is SNOMED CT) and meaning."""

    value: str
    meaning: str
    scheme: str = "SCT"

    def __str__(self) -> str:
        return f"{self.scheme}^{self.value}^{self.meaning}"


ANATOMY = Code("123037004", "Anatomical Structure")
TISSUE = Code("85756007", "Tissue")
ALTERED = Code("49755003", "Morphologically Altered Structure")
LEFT, RIGHT = Code("7771000", "Left"), Code("24028007", "Right")


@dataclass(frozen=True)
class Structure:
    """One structure.

    Attributes:
        key: short name for programs, such as "left kidney".
        name: for display and for the segment.
        words: synonyms, lower case, singular first.
        colour: 0-255 RGB.
        code: its type; None if no code is certain.
        category, side, region: the rest of the coded name; `region` is the organ of a lesion.
        context: the terminology list that contains the code.
    """

    key: str
    name: str
    words: tuple[str, ...]
    colour: tuple[int, int, int]
    code: Code | None
    category: Code = ANATOMY
    side: Code | None = None
    region: Code | None = None
    region_side: Code | None = None
    context: str = _GENERAL

    @property
    def is_finding(self) -> bool:
        """Whether it is a finding, such as a lesion, instead of normal anatomy."""
        return self.category == ALTERED

    def terminology(self) -> str | None:
        """The value of a segment's TerminologyEntry tag as 3D Slicer writes it; None without a code."""
        if self.code is None:
            return None
        parts = (self.category, self.code, self.side, None, self.region, self.region_side)
        category, code, side, _, region, region_side = ("^^" if part is None else str(part) for part in parts)
        return "~".join((self.context, category, code, side, _REGIONS, region, region_side))


def _anatomy(
    words: str,
    colour: tuple[int, int, int],
    code: str,
    meaning: str,
    context: str = _GENERAL,
    category: Code = ANATOMY,
) -> Structure:
    said = tuple(words.split(", "))
    return Structure(
        said[0], said[0].capitalize(), said, colour, Code(code, meaning), category, context=context
    )


_UNPAIRED = (
    _anatomy("liver, hepatic", (221, 130, 101), "10200004", "Liver"),
    _anatomy("spleen, splenic", (157, 108, 162), "78961009", "Spleen"),
    _anatomy("aorta, aortic, abdominal aorta", (224, 97, 76), "15825003", "Aorta"),
    _anatomy(
        "inferior vena cava, ivc, vena cava, caval vein",
        (0, 151, 206),
        "64131007",
        "Inferior vena cava",
        _MASTER,
    ),
    _anatomy("portal vein, portal", (0, 110, 180), "32764006", "Portal vein", _MASTER),
    _anatomy(
        "spine, vertebral column, spinal column, backbone", (226, 202, 134), "421060004", "Spine", _MASTER
    ),
    _anatomy(
        "vertebra, vertebrae, vertebral body, vertebral", (255, 255, 207), "51282000", "Vertebra", _MASTER
    ),
    _anatomy("spinal cord, myelon", (244, 214, 49), "2748008", "Spinal cord"),
    _anatomy("rib, ribs, costal", (253, 232, 158), "113197003", "Rib"),
    _anatomy("stomach, gastric", (216, 132, 105), "69695003", "Stomach"),
    _anatomy("gallbladder, gall bladder", (139, 150, 98), "28231008", "Gallbladder"),
    _anatomy("pancreas, pancreatic", (249, 180, 111), "15776009", "Pancreas"),
    _anatomy("duodenum, duodenal", (255, 253, 229), "38848004", "Duodenum"),
    _anatomy("small bowel, small intestine, jejunum, ileum", (205, 167, 142), "30315005", "Small Intestine"),
    _anatomy("colon, colonic", (204, 168, 143), "71854001", "Colon"),
    _anatomy("large bowel, large intestine", (204, 168, 143), "14742008", "Large intestine", _MASTER),
    _anatomy("esophagus, oesophagus, esophageal, oesophageal", (211, 171, 143), "32849002", "Esophagus"),
    _anatomy("bladder, urinary bladder", (222, 154, 132), "89837001", "Bladder"),
    _anatomy("prostate, prostate gland, prostatic", (230, 158, 140), "41216001", "Prostate"),
    _anatomy("uterus, uterine", (255, 181, 158), "35039007", "Uterus"),
    _anatomy("heart, cardiac", (206, 110, 84), "80891009", "Heart"),
    _anatomy("trachea, windpipe, tracheal", (182, 228, 255), "44567001", "Trachea"),
    _anatomy("brain, cerebral", (250, 250, 225), "12738006", "Brain"),
    _anatomy("lymph node, lymph nodes", (68, 172, 100), "59441001", "Lymph node", _GENERAL, TISSUE),
    _anatomy("muscle, muscles", (192, 104, 88), "71616004", "Muscle", _GENERAL, TISSUE),
    _anatomy("fat, body fat, adipose tissue", (230, 220, 70), "248300009", "Body fat", _GENERAL, TISSUE),
    _anatomy("bone, bones", (241, 214, 145), "272673000", "Bone", _GENERAL, TISSUE),
    Structure("bowel", "Bowel", ("bowel", "bowels", "intestine", "intestines", "gut"), (205, 167, 142), None),
)
# Paired organs: singular, plural, adjective, and synonyms.
_PAIRED = (
    ("kidney", "kidneys", "renal", (185, 102, 83), Code("64033007", "Kidney")),
    ("lung", "lungs", "pulmonary", (197, 165, 145), Code("39607008", "Lung")),
    ("adrenal gland", "adrenal glands", "adrenal", (249, 186, 150), Code("23451007", "Adrenal gland")),
)


def _finding(
    words: str, colour: tuple[int, int, int], code: str, meaning: str, context: str = _MASTER
) -> Structure:
    return replace(_anatomy(words, colour, code, meaning, context), category=ALTERED)


_FINDINGS = (
    _finding("lesion, lesions, abnormality", (144, 238, 144), "4147007", "Mass", _GENERAL),
    _finding("mass, masses", (144, 238, 144), "4147007", "Mass", _GENERAL),
    _finding(
        "tumour, tumor, tumours, tumors, cancer, carcinoma, neoplasm, malignancy",
        (144, 238, 144),
        "108369006",
        "Neoplasm",
    ),
    _finding("metastasis, metastases, metastatic", (144, 238, 144), "14799000", "Neoplasm, Secondary"),
    _finding("nodule, nodules", (144, 238, 144), "27925004", "Nodule"),
    _finding("cyst, cysts", (205, 205, 100), "367643001", "Cyst", _GENERAL),
    _finding("abscess, abscesses", (170, 200, 90), "44132006", "Abscess"),
)
# "hepatic artery" is not the liver: an organ's adjective before one of these words does not count.
_OTHER_PARTS = {
    "artery", "arteries", "vein", "veins", "vessel", "vessels", "duct", "ducts", "hilum", "valve", "flexure", "arch",
    "hiatus", "trunk", "fissure",
}  # fmt: skip
_ADJECTIVES = {
    "hepatic", "splenic", "aortic", "portal", "gastric", "pancreatic", "duodenal", "colonic", "costal", "esophageal",
    "oesophageal", "prostatic", "uterine", "cardiac", "tracheal", "cerebral", "adrenal", "vertebral", "renal",
    "pulmonary",
}  # fmt: skip


def _paired() -> Iterator[Structure]:
    for one, both, adjective, colour, code in _PAIRED:
        yield Structure(both, both.capitalize(), (both, one, adjective, f"both {both}"), colour, code)
        for word, side in (("left", LEFT), ("right", RIGHT)):
            words = (
                f"{word} {one}",
                f"{one} {word}",
                f"{word} sided {one}",
                f"{one} on the {word}",
                f"{word} {adjective}",
            )
            yield Structure(f"{word} {one}", f"{word.capitalize()} {one}", words, colour, code, side=side)


STRUCTURES: dict[str, Structure] = {each.key: each for each in (*_UNPAIRED, *_paired(), *_FINDINGS)}
_BY_WORDS: dict[tuple[str, ...], Structure] = {
    tuple(words.split()): each for each in STRUCTURES.values() for words in (each.key, *each.words)
}
for _one, _both, *_ in _PAIRED:
    for _word in (_one, _both):
        _BY_WORDS[("left", "and", "right", *_word.split())] = STRUCTURES[_both]
_MOST_WORDS = max(map(len, _BY_WORDS))
_WORD = re.compile(r"[^\W_]+")
# The beginning of a request; the object follows.
_REQUEST = re.compile(
    r"(?:please\s{1,4})?(?:can you\s{1,4}|could you\s{1,4})?(?:please\s{1,4})?"
    r"(?:segment|outline|delineate|mark|contour|find|show me|show|locate|identify|where is|where are"
    r"|is there)\s{1,4}(?:(?:the|a|an|any|all)\s{1,4})?",
    re.IGNORECASE,
)


def structures_in(text: str) -> list[Structure]:
    """Every structure mentioned in a text, in order; longer words have priority ("left kidney")."""
    return [structure for structure, _ in _mentions(text)]


def structure_in(text: str) -> Structure | None:
    """The structure that a text is about: the first one mentioned, or None.

    A finding has priority over organs: "Is there a lesion in the liver?" is about a liver lesion, whose region is the
    organ nearest to the word.
    """
    mentions = _mentions(text)
    if not mentions:
        return None
    found = next(((each, at) for each, at in mentions if each.is_finding), None)
    if found is None:
        return mentions[0][0]
    finding, at = found
    organs = sorted((abs(place - at), n) for n, (each, place) in enumerate(mentions) if not each.is_finding)
    if not organs:
        return finding
    nearest = [mentions[n][0] for _, n in organs]
    # "a renal cyst in the left kidney": the mention with the side is more specific.
    organ = next((each for each in nearest if each.side and each.code == nearest[0].code), nearest[0])
    return _within(finding, organ)


def structure_for(question: str, answer: str = "") -> Structure | None:
    """The structure in the question, or otherwise the one in the answer."""
    return structure_in(question) or structure_in(answer)


def another_structure(question: str, reply: str) -> Structure | None:
    """The first structure in a reply, if none of them is in the question; None if they match.

    Left and right of a pair are two structures; either matches a question about both. If a text mentions no structure,
    it matches.
    """
    asked, said = structures_in(question), structures_in(reply)
    if not asked or not said or any(_same(a, b) for a in asked for b in said):
        return None
    return said[0]


def _same(a: Structure, b: Structure) -> bool:
    if a.is_finding or b.is_finding:  # findings are often called by different names
        return a.is_finding and b.is_finding
    return a.code == b.code and (a.key == b.key or a.side is None or b.side is None)


def name_for(question: str, answer: str = "") -> str:
    """A segment's name from the question or the answer.

    The name of a known structure, otherwise the object of the question in its own words, otherwise "Segment".
    """
    known = structure_for(question, answer)
    if known:
        return known.name
    asked = " ".join(question.split())[: 4 * _LONGEST_NAME]
    request = _REQUEST.match(asked)
    if request:
        asked = asked[request.end() :]
    asked = "".join(each for each in asked if each.isprintable()).strip(" .?!:;,\"'")
    if len(asked) > _LONGEST_NAME:
        asked = asked[:_LONGEST_NAME].rsplit(" ", 1)[0] + "…"
    return asked[:1].upper() + asked[1:] if asked else "Segment"


def called(structure: str, names: Sequence[str]) -> str:
    """The one of these names that means the structure; "" if none or several do.

    A name with the same words comes first, because liver_vessels and liver_segment_1 also mention the liver.
    """
    own = [name for name in names if words_of(name) == words_of(structure)][:1]
    found = own or [name for name in names if same_name(name, structure)]
    return found[0] if len(found) == 1 else ""


def same_name(a: str, b: str) -> bool:
    """Whether two names mean one structure: kidney_left and left kidney do."""
    if words_of(a) == words_of(b):
        return True
    one, other = (structure_in(name.replace("_", " ")) for name in (a, b))
    return one is not None and other is not None and one == other


def words_of(name: str) -> tuple[str, ...]:
    """The words by which names are compared: TotalSegmentator writes kidney_left, people write left kidney."""
    return tuple(sorted(name.replace("_", " ").casefold().split()))


def colour_for(question: str, answer: str = "") -> tuple[int, int, int]:
    """A segment's 0-255 RGB colour from the question or the answer; the overlay's green if unknown."""
    known = structure_for(question, answer)
    return known.colour if known else FOREST_GREEN


def _mentions(text: str) -> list[tuple[Structure, int]]:
    """The structures, and the position of the word where each mention begins."""
    words = _WORD.findall(text.casefold())
    found: list[tuple[Structure, int]] = []
    at = 0
    while at < len(words):
        for length in range(min(_MOST_WORDS, len(words) - at), 0, -1):
            said = tuple(words[at : at + length])
            structure = _BY_WORDS.get(said)
            following = words[at + length] if at + length < len(words) else ""
            if structure and not (said[-1] in _ADJECTIVES and following in _OTHER_PARTS):
                found.append((structure, at))
                at += length - 1
                break
        at += 1
    return found


def _within(finding: Structure, organ: Structure) -> Structure:
    singular = next((one for one, both, *_ in _PAIRED if both == organ.key), organ.key)
    return replace(
        finding,
        key=f"{singular} {finding.key}",
        name=f"{singular} {finding.key}".capitalize(),
        region=organ.code,
        region_side=organ.side,
    )
