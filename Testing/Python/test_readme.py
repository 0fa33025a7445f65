"""The README against what is there: links, pictures, keys, messages, commands and options that it names."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PICTURES = ROOT / "IBISSlicer" / "Resources" / "Screenshots"
CODE = re.compile(r"```.*?```", re.DOTALL)
MESSAGE = re.compile(r"(?<!\*)\*([^*\n]+)\*(?!\*)")


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n", README, re.MULTILINE)
    assert found, f"no section {title}"
    rest = README[found.end() :]
    following = re.search(
        rf"^#{{1,{len(found[1])}}} ", CODE.sub(lambda m: " " * len(m[0]), rest), re.MULTILINE
    )
    return rest[: following.start()] if following else rest


def rows(title: str) -> list[list[str]]:
    """The cells of a section's first table, without its heading."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def sources(*folders: str) -> str:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return "\n".join(path.read_text("utf-8") for path in paths)


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", README), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings), "two headings with the same anchor"
    targets = re.findall(r"\]\(([^)\s]+)\)", README)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (ROOT / target).is_file(), target


def test_every_screenshot_is_shown_and_all_are_small() -> None:
    shown = {Path(name).name for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)}
    assert shown == {path.name for path in PICTURES.iterdir()}
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 1_500_000


def test_the_keys_are_those_of_the_module() -> None:
    ui = ElementTree.parse(ROOT / "IBISSlicer" / "Resources" / "UI" / "IBISSlicer.ui")
    texts = {
        str(widget.get("name")): prop.findtext("string")
        for widget in ui.iter("widget")
        for prop in widget.findall("property")
        if prop.get("name") == "text"
    }
    source = (ROOT / "IBISSlicer" / "IBISSlicerLib" / "panels" / "Shortcuts.py").read_text("utf-8")
    real = {
        (keys.replace("Return", "Enter").replace("Escape", "Esc"), texts[button])
        for keys, button in re.findall(r'\("([^"]+)", "(\w+Button)"\)', source)
    }
    told = {(key, button) for keys, button in rows("Keys") for key in keys.split(" or ")}
    assert told == real


def test_the_messages_are_those_of_the_panel() -> None:
    known = sources("IBISSlicer", "Logic")
    known += (ROOT / "IBISSlicer" / "Resources" / "UI" / "IBISSlicer.ui").read_text("utf-8")
    messages = [text for seen, _ in rows("Troubleshooting") for text in MESSAGE.findall(seen)]
    assert len(messages) > 5
    for message in messages:
        assert message.rstrip(" …:.") in known, message


def test_every_make_target_and_every_command_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"\bmake ([a-z][a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    known = set(re.findall(r'add_parser\(\s*"([a-z-]+)"', sources("Logic")))
    commands = set(re.findall(r"ibis-agent ([a-z][a-z-]+)", README))
    assert commands and commands <= known


def test_every_option_of_the_terminal_part_is_known() -> None:
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section("In the terminal")))
    known = sources("Logic")
    assert options
    for option in sorted(options - {"--index-url", "--no-deps", "--no-build-isolation"}):  # pip's
        assert f'"{option}"' in known, option


def test_sam_2_comes_from_the_same_place_for_slicer_make_readme_and_error_texts() -> None:
    from ibis_agent.cli.commands import _INSTALL
    from ibis_agent.segmenter.sam2 import ARCHIVE, HOW_TO_INSTALL

    assert ARCHIVE in (ROOT / "Makefile").read_text("utf-8") and ARCHIVE in README
    assert ARCHIVE in HOW_TO_INSTALL and HOW_TO_INSTALL in _INSTALL
    texts = sources("Logic") + sources("IBISSlicer")
    assert texts.count(ARCHIVE) == 1 and "no-build-isolation sam2" not in texts
