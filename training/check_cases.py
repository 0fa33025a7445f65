"""Check a data set before it is used: count usable cases, and list what is wrong with the others.

    python -m training.check_cases SOURCE [--names labels.json] [--json]

The supported folders and manifests are described in ibis_agent.cases.cases.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from ibis_agent.cases.cases import read_cases, tally
from ibis_agent.cases.data import load_case

from training.common.commands import command_parser, ending


def main() -> None:
    parser = command_parser("check_cases", __doc__)
    parser.add_argument("source", type=Path, help="a folder, a .csv or a .json manifest")
    parser.add_argument("--names", type=Path, help="JSON with the names of the label values")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args()
    usable: Counter[str] = Counter()
    with ending():
        cases, problems = read_cases(args.source, args.names)
        for case in cases:
            loaded, more = load_case(case)
            problems += more
            if loaded is not None:
                usable.update(["cases", *loaded.structures])
    if args.json:
        print(json.dumps({"usable": dict(usable), "problems": tally(problems)}, indent=1))
        return
    print(f"{usable.pop('cases', 0)} usable cases")
    for name, count in usable.most_common():
        print(f"  {name}: {count}")
    for problem in problems:
        print(f"{problem.kind}: {problem}")


if __name__ == "__main__":
    main()
