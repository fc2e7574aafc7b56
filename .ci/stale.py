"""Whether tables and figures show what the released results say.

    python .ci/stale.py EXECUTED FIGURES

EXECUTED holds the notebooks of nbs/tables as executed with `-p smoke True`, and FIGURES the files that they wrote: a
table in its smallest form shows the released results, under another name. Each file in figures/ must be among them,
and equal to it, captions included; what notebooks display must equal that in the committed notebooks. A figure must
have the same provenance and, drawn by the same version of matplotlib, the same lines and letters. Prints what differs;
the exit code is then 1.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEWER = ("fig14_answers",)  # in their smallest form they measure on fewer images


def missing(figures: Path) -> list[str]:
    "The committed tables and figures that no notebook wrote."
    kept = [
        f
        for pattern in ("tab*.csv", "tab*.md", "tab*.tex", "tab*.json", "fig*.json")
        for f in (ROOT / "figures").glob(pattern)
    ]
    made = {f.name.replace("_smoke", "") for f in figures.glob("*_smoke*")}
    return sorted(f.name for f in kept if f.name not in made)


def displayed(path: Path) -> list[str]:
    "The tables, notes and pages that a notebook displays, and the lines that it prints."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [o for c in cells for o in c.get("outputs", [])]
    found = [o.get("data", {}).get("text/html") or o.get("data", {}).get("text/markdown") for o in outputs]
    printed = "".join("".join(o["text"]) for o in outputs if o.get("name") == "stdout")  # in pieces of any length
    return ["".join(h) for h in found if h] + [printed.replace("_smoke", "")]


def drawn(path: Path) -> tuple[dict, str]:
    "The provenance of a figure, and its drawing, without pictures, which are compressed by the one or other library."
    about = json.loads(path.read_text(encoding="utf-8")) | dict(figure="")
    return about, re.sub(r"base64,[^\"]*", "", path.with_suffix(".svg").read_text(encoding="utf-8"))


def content(path: Path) -> dict | str | None:  # None: there is no such file
    "The content of a file of a table, whatever it is called and whichever pandas wrote it."
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8").replace("_smoke", "")
    return json.loads(text) | dict(pandas="") if path.suffix == ".json" else text


def main(executed: Path, figures: Path) -> int:
    tables = sorted(f for end in ("csv", "md", "tex", "json") for f in figures.glob(f"tab*_smoke*.{end}"))
    pictures = sorted(figures.glob("fig*_smoke.json"))
    stale = [f"figures/{name} is written by no notebook" for name in missing(figures)]
    for made in pictures:
        name = made.stem.removesuffix("_smoke")
        if name in FEWER:
            continue
        file = ROOT / "figures" / f"{name}.json"
        (about, lines), (kept_about, kept) = drawn(made), drawn(file) if file.exists() else ({}, "")
        same = about.pop("matplotlib") == kept_about.pop("matplotlib", None)
        if about != kept_about or (same and lines != kept):
            stale.append(f"figures/{name} differs from what the released results give")
    for made in tables:
        kept = ROOT / "figures" / made.name.replace("_smoke", "")
        if content(kept) != content(made):
            stale.append(f"figures/{kept.name} differs from what the released results give")
    pages = [ROOT / "nbs" / f"{name}.ipynb" for name in ("findings", "leaderboard")]
    for notebook in [*sorted((ROOT / "nbs" / "tables").glob("*.ipynb")), *pages]:
        if displayed(notebook) != displayed(executed / notebook.name):
            stale.append(f"{notebook.relative_to(ROOT)} displays other values than the released results give")
    print("\n".join([*stale, "execute these notebooks again and commit"] if stale else ["no table or figure is stale"]))
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
