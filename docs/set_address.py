"""Writes the address of the public repository wherever the Extensions Manager reads it (`make address`).

    python docs/set_address.py https://github.com/OWNER/SlicerIBIS [BRANCH]

The index reads the addresses from CMakeLists.txt as plain text, without running CMake, so no variable can hold them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ICON = "IBISSlicer/Resources/Icons/IBISSlicer.png"
SCREENSHOTS = "IBISSlicer/Resources/Screenshots"


def set_address(root: Path, address: str, branch: str = "main") -> None:
    """Rewrite CMakeLists.txt and docs/IBISSlicer.json below `root`. Raises ValueError for an unusable address."""
    found = re.fullmatch(
        r"https://github\.com/([\w.-]+)/(Slicer[\w-]*)", address.removesuffix(".git").rstrip("/")
    )
    if found is None:
        raise ValueError(f"{address}: write https://github.com/OWNER/NAME, NAME beginning with Slicer")
    owner, name = found.groups()
    raw = f"https://raw.githubusercontent.com/{owner}/{name}/{branch}"
    pictures = sorted((root / SCREENSHOTS).glob("*.png"))
    values = {
        "HOMEPAGE": f"https://github.com/{owner}/{name}",
        "ICONURL": f"{raw}/{ICON}",
        "SCREENSHOTURLS": " ".join(f"{raw}/{SCREENSHOTS}/{path.name}" for path in pictures),
    }
    cmake = root / "CMakeLists.txt"
    text = cmake.read_text(encoding="utf-8")
    for key, value in values.items():
        text = re.sub(rf'(set\(EXTENSION_{key} )"[^"]*"', rf'\1"{value}"', text)
    cmake.write_text(text, encoding="utf-8")
    entry = root / "docs" / "IBISSlicer.json"
    content = json.loads(entry.read_text(encoding="utf-8"))
    content.update(scm_url=f"https://github.com/{owner}/{name}.git", scm_revision=branch)
    lines = json.dumps(content, indent=2).replace('[\n    "PyTorch"\n  ]', '["PyTorch"]')
    entry.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        set_address(ROOT, *sys.argv[1:3])
    except (TypeError, ValueError) as error:
        sys.exit(f"{error}")
