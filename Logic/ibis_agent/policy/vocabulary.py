"""Questions to a small policy: they must name structures of its vocabulary, or they are refused.

A small policy answers unknown words with confident nonsense, so its card lists the structures it knows and their
synonyms. A large policy reads any question and has no vocabulary.

Words next to a structure's name are not ignored: "liver cyst" and "left lobe of the liver" are not the liver. A
question for several structures becomes several questions, see `questions_in`.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ibis_agent.errors import InputError
from ibis_agent.mask.structures import STRUCTURES
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.prompts import check_question

Vocabulary = Mapping[str, Sequence[str]]

_SHORTEST_TYPO = 5  # letters; shorter words are too similar
_SIZE = re.compile(
    r"\b(?:how\s+(?:large|big|long|wide|thick|heavy|much)|size|volume|diameter|measure\w*|millilit\w+|ml"
    r"|hounsfield|hu)\b"
)
_NEGATION_WORDS = """
not no never don dont except excepting without besides excluding exclude excludes neither but apart minus rather instead
ignore ignoring unless nicht ohne ausser kein keine keinen sin excepto salvo menos
"""
# Words that turn an organ into a part of it, or into something in it or near it.
_PART_WORDS = """
lobe lobes cortex medulla wall walls pole poles hilum artery arteries vein veins vessel vessels duct
ducts head tail neck fundus antrum caudate quadrate capsule pelvis stone stones thrombus aneurysm
dissection ascending descending arch thoracic branch bifurcation stent graft half upper lower part
parts next near nearby beside adjacent neighbouring neighboring behind above below beneath around surrounding outside
between neben hinter junto detras
"""
_SEGMENT_NUMBER = re.compile(r"\bsegments?\s+(?:\d|[ivx]+\b)|\b[tlc]\d{1,2}\b")
# Words beside a structure's name that do not change what is asked for.
_PLAIN_WORDS = """
a an the this that these those any some all whole entire complete my his her its their patient
patients please pls and or of in on at with from for to by as is are it there here where what which
how large big size volume diameter area mean density value values can could would you i we me us
need want like see show find locate identify segment segmented segmentation segmenting outline
delineate contour mark annotate label highlight draw mask measure visible seen present exists exist
slice slices image images picture scan ct view plane look does do has have now then also both left
right enlarged normal abdominal axial only just again plus together two each thanks thank
der die das den dem des ein eine einen bitte
und oder im auf mir zeige zeig finde segmentiere markiere wo ist sind wie gross el la los las un una
por favor y o en de del muestra muestrame segmenta segmente marca donde esta que hu ml cm mm fatty
cirrhotic nodular polycystic shrunken small swollen dilated calcified healthy
"""
_LIST = re.compile(r"[,;&+/]|\b(?:and|und|y|plus)\b")
_BOTH_SIDES = re.compile(r"\b(?:left and (?:the )?right|right and (?:the )?left)\b")
_CONJUNCTIONS = {"and", "und", "y", "plus"}
_ARTICLES = {
    "a",
    "an",
    "the",
    "any",
    "all",
    "then",
    "also",
    "der",
    "die",
    "das",
    "den",
    "el",
    "la",
    "los",
    "las",
}
_PART, _PLAIN, _NEGATION = (set(words.split()) for words in (_PART_WORDS, _PLAIN_WORDS, _NEGATION_WORDS))


@dataclass(frozen=True)
class Asked:
    """What a question asks for.

    Attributes:
        structures: names in the vocabulary, in order of mention, without duplicates.
        size: whether the question asks for their size.
    """

    structures: tuple[str, ...]
    size: bool = False


def understand(question: str, vocabulary: Vocabulary, name: str = "") -> Asked:
    """What a question asks for, by the names of a policy's vocabulary.

    Case, accents, plurals and one wrong letter in a word of five or more letters are ignored.

    name: the policy's, for the message. Raises InputError, with the list of known structures, for a question that
    names none of them, names others, or qualifies a structure's name.
    """
    words = _words(question)
    problem = _refusal(question, words, vocabulary)
    if problem:
        raise InputError(
            f"{name or 'this policy'} cannot answer this: {problem}",
            value=question,
            remedy=f"It knows: {', '.join(vocabulary)}. For example: Segment the {next(iter(vocabulary))}.",
        )
    mentions = list(_mentions(words, vocabulary))
    found = [key for key, _, _ in mentions]
    if "lesion" in found and not _listed(words, mentions):  # "a lesion in the liver" asks for the lesion
        found = ["lesion"]
    names = [known for key in found for known in _known(key, vocabulary)]
    return Asked(tuple(dict.fromkeys(names)), bool(_SIZE.search(" ".join(words))))


def structures_in(question: str, vocabulary: Vocabulary) -> list[str]:
    """The structures that a question asks for, see Asked.structures; empty without a vocabulary.

    Raises InputError as `understand`.
    """
    return list(understand(question, vocabulary).structures) if vocabulary else []


def questions_in(question: str, card: ModelCard) -> list[str]:
    """A question split into one question per structure: "How large are the kidneys?" asks for the size of each.

    A question for one structure, or to a policy without a vocabulary, stays as typed. Raises InputError as
    `check_question` and `understand` do.
    """
    question = check_question(question, card.max_question, card.script)
    if not card.vocabulary:
        return [question]
    asked = understand(question, card.vocabulary, card.name)
    if len(asked.structures) == 1:
        return [question]
    wanted = "How large is the {}?" if asked.size else "Segment the {}"
    return [wanted.format(name) for name in asked.structures]


def check_asked(question: str, card: ModelCard) -> str:
    """The question of a single run, without surrounding white space.

    Raises InputError as `questions_in` does, and if it asks for several structures.
    """
    questions = questions_in(question, card)
    if len(questions) > 1:
        names = structures_in(question, card.vocabulary)
        raise InputError(
            "the question asks for several structures",
            value=question.strip(),
            remedy=f"Ask for one at a time: {', or '.join(f'the {each}' for each in names)}.",
        )
    return questions[0]


def wording(question: str, vocabulary: Vocabulary) -> str:
    """The question in the words that the policy was trained on, if it asks for one known structure.

    Other questions stay as they are.
    """
    if not vocabulary:
        return question
    try:
        asked = understand(question, vocabulary)
    except InputError:
        return question
    return f"Segment the {asked.structures[0]}" if len(asked.structures) == 1 else question


def _refusal(question: str, words: list[str], vocabulary: Vocabulary) -> str:
    """Why a question is refused; empty if it is not."""
    mentions = list(_mentions(words, vocabulary))
    if not mentions:
        return "the question names no structure that it knows"
    for key, _, _ in mentions:
        if not _known(key, vocabulary):
            return f"it does not know the {key}"
    if negation := _NEGATION & set(words):
        return f'it does not understand "{min(negation)}"'
    if number := _SEGMENT_NUMBER.search(" ".join(words)):
        return f'it does not know "{number[0]}"'
    taken = {at for _, first, after in mentions for at in range(first, after)}
    finding = any(key == "lesion" for key, _, _ in mentions)
    for at, word in enumerate(words):
        beside = at not in taken and (at - 1 in taken or at + 1 in taken)
        if (at not in taken and word in _PART) or (beside and not finding and not _is_plain(word)):
            return f'it does not know what "{word}" means here'
    if unknown := _unknown_in_a_list(question, vocabulary):
        return f'it does not know what "{unknown}" means here'
    return ""


def _unknown_in_a_list(question: str, vocabulary: Vocabulary) -> str:
    """An unknown item in a list, such as "thymus" in "the liver and the thymus"; otherwise ""."""
    named = False
    for item in _LIST.split(question.casefold()):
        words = [word for word in _words(item) if word not in _ARTICLES]
        mentioned = any(True for _ in _mentions(words, vocabulary))
        if named and words and not mentioned and not any(_is_plain(word) for word in words):
            return " ".join(words)
        named = named or mentioned
    return ""


def _listed(words: list[str], mentions: list[tuple[str, int, int]]) -> bool:
    """Whether a finding and an organ form a list: "the liver and the lesions", not "lesions in the liver"."""
    for (a, _, end), (b, start, _) in itertools.pairwise(mentions):
        between = set(words[end:start])
        if (a == "lesion") != (b == "lesion") and not (
            between & _CONJUNCTIONS and between <= _CONJUNCTIONS | _ARTICLES
        ):
            return False
    return True


def _is_plain(word: str) -> bool:
    """Whether a word may stand beside a structure's name, also with two neighbouring letters swapped."""
    swapped = (word[:n] + word[n + 1] + word[n] + word[n + 2 :] for n in range(len(word) - 1))
    return word in _PLAIN or any(each in _PLAIN for each in swapped)


def _known(key: str, vocabulary: Vocabulary) -> list[str]:
    """The names in the vocabulary that a structure's key stands for; both sides if it has none."""
    if key in vocabulary:
        return [key]
    structure = STRUCTURES.get(key)
    if structure is None:
        return []
    if structure.is_finding:
        return ["lesion"] if "lesion" in vocabulary else []
    sides = [STRUCTURES[name] for name in vocabulary if name in STRUCTURES]
    return [
        each.key for each in sides if each.side and each.code == structure.code and structure.side is None
    ]


def _mentions(words: list[str], vocabulary: Vocabulary) -> Iterator[tuple[str, int, int]]:
    """(key, index of the first word, index after the last) of every structure named; longest names first."""
    phrases = _phrases(vocabulary)
    longest = max(map(len, phrases))
    at = 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            key = _key_of(tuple(words[at : at + length]), phrases)
            if key:
                yield ("lesion" if key in STRUCTURES and STRUCTURES[key].is_finding else key), at, at + length
                at += length - 1
                break
        at += 1


def _phrases(vocabulary: Vocabulary) -> dict[tuple[str, ...], str]:
    phrases = {}
    for structure in STRUCTURES.values():
        for said in (structure.key, *structure.words):
            phrases[tuple(_words(said))] = structure.key
    for name, further in vocabulary.items():
        for said in (name, *further):
            phrases[tuple(_words(said))] = name
    return phrases


def _key_of(said: tuple[str, ...], phrases: Mapping[tuple[str, ...], str]) -> str:
    """The structure that these words name, also in the plural or with one wrong letter; otherwise ""."""
    for form in (said, (*said[:-1], said[-1].removesuffix("s"))):
        if form in phrases:
            return phrases[form]
    if any(word in _PLAIN or word in _PART for word in said) and len(said) == 1:
        return ""
    near = {
        key
        for phrase, key in phrases.items()
        if len(phrase) == len(said) and all(map(_same_but_one_letter, said, phrase))
    }
    return near.pop() if len(near) == 1 else ""


def _same_but_one_letter(a: str, b: str) -> bool:
    """Whether words are equal; from five letters on, one letter may be wrong, missing or extra, or two swapped."""
    if a == b:
        return True
    if (
        min(len(a), len(b)) < _SHORTEST_TYPO - 1
        or max(len(a), len(b)) < _SHORTEST_TYPO
        or abs(len(a) - len(b)) > 1
    ):
        return False
    start = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if start == 0 and len(a) == len(b):  # "river" is not "liver"; typos rarely affect the first letter
        return False
    swapped = a[start : start + 2] == b[start : start + 2][::-1] and a[start + 2 :] == b[start + 2 :]
    return (
        swapped
        or a[start + 1 :] == b[start + 1 :]
        or a[start:] == b[start + 1 :]
        or a[start + 1 :] == b[start:]
    )


def _words(text: str) -> list[str]:
    """Words without case, accents and punctuation; "left and right" becomes "both"."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return _BOTH_SIDES.sub("both", " ".join(re.findall(r"[^\W_]+", plain))).split()
