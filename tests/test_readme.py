"README.md is made from the index notebook by a small converter; here are its rules."

import json
from pathlib import Path

from scripts import load_script

readme = load_script(Path(__file__).parents[1] / ".ci" / "readme.py")


def convert(tmp_path, *cells):
    "The README of a notebook of (cell type, source, *outputs), without its first line."
    cells = [
        {"cell_type": kind, "source": src.splitlines(keepends=True), "outputs": outs} for kind, src, *outs in cells
    ]
    (tmp_path / "index.ipynb").write_text(json.dumps({"cells": cells}))
    note, text = readme.readme_from_index(tmp_path / "index.ipynb").split("\n\n", 1)
    assert note == readme.NOTE
    return text


def test_markdown_and_settings(tmp_path):
    first = "# parnb\n\n> One line\n\n- order: 0\n- skip_exec: true"
    assert (
        convert(tmp_path, ("markdown", first), ("markdown", "- key: kept here"))
        == "# parnb\n\n> One line\n\n- key: kept here\n"
    )


def test_code_is_shown_unless_hidden(tmp_path):
    out = {"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n"]}
    assert convert(tmp_path, ("code", "#| eval: false\nprint(1)")) == "```python\nprint(1)\n```\n"
    assert convert(tmp_path, ("code", "f()", out)) == "```python\nf()\n```\n\n```\n1\n2\n```\n"
    assert convert(tmp_path, ("code", "#| echo: false\nf()", out)) == "```\n1\n2\n```\n"
    for flag in ("hide", "include: false"):
        assert convert(tmp_path, ("markdown", "x"), ("code", f"#| {flag}\nf()", out)) == "x\n"


def test_outputs_are_text_or_left_out(tmp_path):
    table = {"output_type": "display_data", "data": {"text/markdown": ["|a|"], "text/plain": ["<x>"]}}
    image = {"output_type": "display_data", "data": {"image/png": "iVBOR", "text/plain": ["<Figure>"]}}
    ticks = {"output_type": "execute_result", "data": {"text/plain": ["```"]}}
    assert convert(tmp_path, ("code", "#| echo: false\nf()", table, image, ticks)) == "|a|\n\n````\n```\n````\n"


def test_links_hold_at_the_root(tmp_path):
    same = "[c](https://x.org/y) [d](#below)\n\n```\n[e](../f)\n```"
    src = '![f](../figures/a.svg) [b](api/00_core.ipynb#errors) <img src="../figures/a.png"> ' + same
    out = '![f](figures/a.svg) [b](nbs/api/00_core.ipynb#errors) <img src="figures/a.png"> ' + same
    assert convert(tmp_path, ("markdown", src)) == out + "\n"
