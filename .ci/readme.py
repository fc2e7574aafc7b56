"""README.md is nbs/index.ipynb as Markdown: `python .ci/readme.py` writes it, with `--check` it fails if they differ.

`nbdev_readme` does the same with Quarto; this needs nothing but Python.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook, not this file. -->"
LINK = re.compile(r'(\]\(|\b(?:src|href)=")(?![a-z][a-z0-9+.-]*:|[/#])([^)"#\s]+)')
FENCE = re.compile(r"(^(`{3,}|~{3,}).*?^\2[ \t]*$)", re.M | re.S)


def relink(
    text: str,  # Markdown, its links relative to nbs/
) -> str:  # the same, its links relative to the root; code blocks untouched
    "Rewrite the links of the notebook for the folder above it."
    out, end = [], 0

    def move(s):
        return LINK.sub(lambda m: m[1] + os.path.normpath("nbs/" + m[2]).replace(os.sep, "/"), s)

    for m in FENCE.finditer(text):
        out, end = [*out, move(text[end : m.start()]), m[0]], m.end()
    return "".join(out) + move(text[end:])


def fenced(text: str, lang: str = "") -> str:
    "A code block, its fence longer than any within."
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{lang}\n{text}\n{ticks}"


def outputs(cell: dict) -> list[str]:
    "The outputs that are text, as Markdown."
    out = []
    for o in cell.get("outputs", []):
        data = o.get("data", {"text/plain": o.get("text", "")})
        kind = next((k for k in ("text/markdown", "text/plain") if k in data), None)
        if kind is None or any(k.startswith("image/") for k in data):
            continue
        text = "".join(data[kind]).strip("\n")
        if text:
            out.append(relink(text) if kind == "text/markdown" else fenced(text))
    return out


def readme_from_index(path: Path = ROOT / "nbs" / "index.ipynb") -> str:
    "Markdown cells unchanged; code in fences unless hidden (`#| hide`, `include: false`, `echo: false`); text outputs."
    parts = [NOTE]
    for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        src = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            if i == 0:
                # without the settings below title and description
                src = re.sub(r"^- [\w-]+:.*\n?", "", src, flags=re.M).strip()
            parts.append(relink(src))
        elif cell["cell_type"] == "code":
            flags = {re.sub(r"\s", "", f) for f in re.findall(r"^#\|(.*)$", src, re.M)}
            if flags & {"hide", "include:false"}:
                continue
            code = re.sub(r"^#\|.*\n?", "", src, flags=re.M).strip()
            if code and "echo:false" not in flags:
                parts.append(fenced(code, "python"))
            if "output:false" not in flags:
                parts += outputs(cell)
    return "\n\n".join(p for p in parts if p) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where README.md is not what the notebook gives"
    )
    check, readme = parser.parse_args().check, ROOT / "README.md"
    try:
        text = readme_from_index()
    except FileNotFoundError as e:
        sys.exit(f"{Path(e.filename).relative_to(ROOT)} is missing")
    if readme.exists() and readme.read_text(encoding="utf-8") == text:
        return 0
    if check:
        sys.exit("README.md differs from nbs/index.ipynb: run `python .ci/readme.py` and commit the result")
    readme.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
