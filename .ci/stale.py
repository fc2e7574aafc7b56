"""Whether tables show what the released results say.

    python .ci/stale.py EXECUTED FIGURES

EXECUTED holds the notebooks of nbs/tables as executed with `-p smoke True`, and FIGURES the files that they wrote: a
table in its smallest form shows the released results, under another name. The files, captions included, must equal
those in figures/, and what notebooks display that in the committed notebooks. Prints what differs; the exit code is
then 1.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def displayed(path: Path) -> list[str]:
    "The tables, notes and pages that a notebook displays."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    data = [o.get("data", {}) for c in cells for o in c.get("outputs", [])]
    found = [d.get("text/html") or d.get("text/markdown") for d in data]
    return ["".join(h) for h in found if h]


def main(executed: Path, figures: Path) -> int:
    tables = sorted(f for end in ("csv", "md") for f in figures.glob(f"tab*_smoke*.{end}"))
    stale = [] if tables else [f"{figures} holds no table in its smallest form"]
    for made in tables:
        kept = ROOT / "figures" / made.name.replace("_smoke", "")
        if not kept.exists() or kept.read_bytes() != made.read_bytes():
            stale.append(f"figures/{kept.name} differs from what the released results give")
    for notebook in [*sorted((ROOT / "nbs" / "tables").glob("*.ipynb")), ROOT / "nbs" / "leaderboard.ipynb"]:
        if displayed(notebook) != displayed(executed / notebook.name):
            stale.append(f"{notebook.relative_to(ROOT)} displays other values than the released results give")
    print("\n".join([*stale, "execute these notebooks again and commit"] if stale else ["no table is stale"]))
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
