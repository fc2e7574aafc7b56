"""The documentation site in _docs/, from the notebooks: `python .ci/docs.py`, then `python -m http.server -d _docs`.

It is built in a copy; the source tree does not change. nbdev prepares the pages; Quarto renders them if it is on the
PATH, else smalldocs. Pages show the outputs saved in their notebooks. A figure or table without outputs is executed
from the released results, which trains nothing; with --fresh all of them are. A page loads nothing from another host:
maths is MathML, and scripts, styles and fonts are part of the site.
"""

import argparse
import ast
import configparser
import html
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, get_args, get_origin

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'(\]\(|\b(?:src|href)=")(?![a-z][a-z0-9+.-]*:|[/#])([^)"#\s]+)')
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", re.M | re.S)
PICTURES = {".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp"}
FIG_ALT = re.compile(r'^#\|\s*fig-alt:\s*"(.*)"$', re.M)
# Tags that a browser follows by itself
LOADED = dict(img="src", script="src", source="src", iframe="src", link="href")
# Folders with a page of their own, and the section of the sidebar that leads to it
INDEXED = dict(figures="Figures", tables="Tables", tutorials="Tutorials", api="Library")
# Pages besides figures and tables on which outputs stand before the code
SHOWN = ("answers.ipynb", "leaderboard.ipynb", "sources.ipynb")
# The renderer says these of every site made by nbdev; nothing is wrong
USUAL = re.compile("output-file is not read|format commonmark is not built|is ignored$")


def text_of(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, nb: dict):
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def head_of(nb: dict) -> tuple[str, str]:
    "Title and description, from a notebook's first cell."
    src = text_of(nb["cells"][0]["source"])
    return re.search(r"^# (.+)$", src, re.M)[1], re.search(r"^> (.+)$", src, re.M)[1]


def order_of(nb: dict) -> int:
    "The number in `- order: N` of a notebook's first cell, else 0."
    found = re.search(r"^- order: (\d+)$", text_of(nb["cells"][0]["source"]), re.M)
    return int(found[1]) if found else 0


def has_outputs(nb: dict) -> bool:
    return any(c.get("outputs") for c in nb["cells"])


def notebooks(nbs: Path) -> list[Path]:
    return sorted(p for p in nbs.rglob("*.ipynb") if not any(part[0] in "_." for part in p.relative_to(nbs).parts))


def is_module(path: Path, nbs: Path) -> bool:
    "Whether a notebook exports a module."
    return nbs / "api" in path.parents


def is_run(path: Path, nbs: Path, nb: dict) -> bool:
    "Whether a notebook is one that readers run: no module, not the first page, and not of text alone."
    coded = any(c["cell_type"] == "code" for c in nb["cells"])
    return coded and not is_module(path, nbs) and path.name != "index.ipynb"


def settings() -> configparser.SectionProxy:
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


# The copy: outputs, links, alternative texts, index pages


def copy_project(tmp: str) -> Path:
    "Copy what the site is made of into a temporary folder."
    project = Path(tmp).resolve() / "project"
    ignore = shutil.ignore_patterns(".*", "_proc", "_docs", "sidebar.yml", "__pycache__")
    for folder in ("nbs", "figures", "parnb"):
        shutil.copytree(ROOT / folder, project / folder, ignore=ignore)
    shutil.copy(ROOT / "settings.ini", project)
    (project / "nbs" / "pictures").mkdir()
    return project


def execute(path: Path) -> str:
    "Execute a figure or table of the copy from the released results; returns what went wrong, or nothing."
    from papermill.inspection import inspect_notebook
    from parnb.core import ParnbError
    from parnb.study.notebooks import execute_notebook

    values = {k: v for k, v in dict(compute=False).items() if k in inspect_notebook(str(path))}
    done = path.with_name(f".{path.name}")
    try:
        execute_notebook(path, done, values)
    except ParnbError as e:
        return f"{path.stem}: {e}"
    nb = read(done)
    nb["cells"] = [c for c in nb["cells"] if "injected-parameters" not in c["metadata"].get("tags", [])]
    done.unlink()
    write(path, nb)
    return ""


def execute_all(nbs: Path, fresh: bool) -> Iterator[str]:
    "Execute the figures and tables of the copy that have no outputs, or all of them; yields progress."
    folders = (nbs / "figures", nbs / "tables")
    drawn = [p for p in notebooks(nbs) if p.parent in folders and (fresh or not has_outputs(read(p)))]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for i, (p, error) in enumerate(zip(drawn, pool.map(execute, drawn)), 1):
            if error:
                sys.exit(error)
            yield f"drawn from the released results: {p.stem}, {i} of {len(drawn)}"


def relink(text: str, page: Path, nbs: Path, blob: str) -> str:
    """Make the links of a Markdown text work in the site.

    Pictures of the repository are copied into the site; links to its other files lead to the repository's host."""

    def moved(m):
        there = Path(os.path.normpath(page.parent / m[2]))
        if not there.is_relative_to(nbs):
            name = os.path.relpath(there, nbs.parent)
            if there.suffix not in PICTURES:
                return f"{m[1]}{blob}/{name}"
            if not there.exists():
                sys.exit(f"{page.relative_to(nbs)} shows {name}, which does not exist")
            there = Path(shutil.copy2(there, nbs / "pictures"))
        elif there.is_dir():
            there = there / "index.md"
        return m[1] + os.path.relpath(there, page.parent)

    text = re.sub(r"!\[([^]]*)\]\(https?://[^)]*\)", r"\1", text)  # a badge becomes its words
    out, end = [], 0
    for f in FENCE.finditer(text):
        out, end = [*out, LINK.sub(moved, text[end : f.start()]), f[0]], f.end()
    return "".join(out) + LINK.sub(moved, text[end:])


def plain(text: str) -> str:
    "The last paragraph of a Markdown text, without its marks."
    text = re.sub(r"\[([^]]*)\]\([^)]*\)|[*_`$\\#]+", r"\1", text.strip().split("\n\n")[-1])
    return " ".join(text.split()).replace('"', "'")


def module_name(path: Path) -> str:
    "The module of a notebook, of its page or of a part of the page, by the path within the folder api."
    return ".".join(["parnb", *path.with_suffix("").parts])


def add_setting(nb: dict, line: str):
    "Add a setting of the page to a notebook's first cell, after those that it has."
    src = text_of(nb["cells"][0]["source"]).rstrip()
    nb["cells"][0]["source"] = f"{src}\n{'' if src.splitlines()[-1].startswith('- ') else chr(10)}- {line}\n"


def markdown_cell(cell_id: str, text: str) -> dict:
    return dict(cell_type="markdown", id=cell_id, metadata={}, source=text.splitlines(True))


def add_captions(nb: dict, path: Path, figures: Path):
    "Put the caption of each table above it, without what the page says; files are named in the order of the tables."
    outputs = [o for c in nb["cells"] for o in c.get("outputs", [])]
    names = " ".join(text_of(o.get("text", "")) for o in outputs)
    notes = [text_of(o["data"]["text/markdown"]).strip() for o in outputs if "text/markdown" in o.get("data", {})]
    texts = [figures / n for n in re.findall(rf"{path.stem}\w*\.md", names)]
    cells, left = [], [t for t in texts if t.exists()]
    for c in nb["cells"]:
        if left and any("text/html" in o.get("data", {}) for o in c.get("outputs", [])):
            caption = left.pop(0).read_text(encoding="utf-8").split("\n\n")[0]
            for note in notes:
                caption = caption.replace(note, "")
            cells.append(markdown_cell(f"caption{len(cells)}", f"::: {{.said}}\n{caption}\n:::\n"))
        cells.append(c)
    nb["cells"] = cells


def put_first(nb: dict, path: Path, nbs: Path):
    "Show a figure or table before its code: a block at the end holds the code, and links lead to its files."
    figures, code = nbs.parent / "figures", []
    made = [f for pattern in (f"{path.stem}.*", f"{path.stem}_*") for f in sorted(figures.glob(pattern))]
    files = [f for f in made if f.suffix != ".md"]  # the renderer makes pages of Markdown files
    names = {f.name for f in made}
    for c in (c for c in nb["cells"] if "outputs" in c):  # the caption below a table stands above it here
        notes = [text_of(o.get("data", {}).get("text/markdown", "")) for o in c["outputs"]]
        c["outputs"] = [o for o, note in zip(c["outputs"], notes) if not note.startswith("**Table ")]
    add_captions(nb, path, figures)
    for f in files:
        shutil.copy2(f, nbs / "pictures")
    for c in nb["cells"]:
        if c["cell_type"] == "code":
            src = text_of(c["source"])
            code.append("\n".join(line for line in src.splitlines() if not line.startswith("#|")).strip())
            if not re.search(r"^#\|\s*echo:", src, re.M):
                c["source"] = f"#| echo: false\n{src}".splitlines(True)
            c["outputs"] = [o for o in c["outputs"] if not {*text_of(o.get("text", "-")).split()} <= names]
    links = ", ".join(f"[{f.name}]({os.path.relpath(nbs / 'pictures' / f.name, path.parent)})" for f in files)
    if files:
        nb["cells"].append(markdown_cell("files", f"Files: {links}"))
    shown = "\n\n".join(["#| code-fold: true\n#| code-summary: The code of this page", *code])
    last = dict(cell_type="code", id="code", metadata={}, execution_count=None, outputs=[])
    nb["cells"].append(last | dict(source=shown.splitlines(True)))
    if path.parent.name == "tables" or path.stem in ("leaderboard", "sources"):
        add_setting(nb, "page-layout: full")


def link_sources(page: str) -> str:
    "Make links of the papers and repositories that the tables of the page of sources name."

    def repository(m):
        place = f"{m[1]}/tree/{m[3]}" if m[3] else m[1]
        return f'<td><a href="https://github.com/{place}">{m[1]}{m[2] or ""}</a>, '

    page = re.sub(r"\barXiv (\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">\g<0></a>', page)
    return re.sub(r"<td>([\w-]+/[\w.-]+)( ([0-9a-f]{7}))?, ", repository, page)


def prepare(path: Path, nbs: Path, blob: str):
    "Give a notebook of the copy what its page needs: working links, alternative texts, a note if it has no outputs."
    nb = read(path)
    title, before = head_of(nb)[0], ""
    for c in nb["cells"]:
        src = text_of(c["source"])
        if c["cell_type"] == "markdown":
            src = relink(src, path, nbs, blob)
            before = plain(src) or before
        for o in c.get("outputs", []):
            data = o.get("data", {})
            if "text/markdown" in data:
                data["text/markdown"] = relink(text_of(data["text/markdown"]), path, nbs, blob)
            if path == nbs / "sources.ipynb" and "text/html" in data:
                data["text/html"] = link_sources(text_of(data["text/html"]))
            if any(k.startswith("image/") for k in data) and not re.search(r"^#\|\s*fig-alt:", src, re.M):
                src = f'#| fig-alt: "{title}: {before}"\n{src}'
        c["source"] = src.splitlines(True)
    if is_run(path, nbs, nb) and not has_outputs(nb):
        note = (
            "::: {.callout-note}\n## Without outputs\n"
            "This notebook trains models, so its outputs are not saved with it. "
            f"`parnb run {path.stem}` executes it and prints where the executed notebook is.\n:::\n"
        )
        nb["cells"].insert(1, markdown_cell("without", note))
    if path.parent in (nbs / "figures", nbs / "tables") or path in [nbs / name for name in SHOWN]:
        put_first(nb, path, nbs)
    if path == nbs / "report.ipynb":
        nb["cells"].insert(1, markdown_cell("everything", "[The report](everything.html) of this version of the site."))
    if is_module(path, nbs):
        add_setting(nb, f"pagetitle: {module_name(path.relative_to(nbs / 'api'))}")
    write(path, nb)


def entry(path: Path, folder: Path, figures: Path, pictures: Path) -> str:
    "A notebook in the page of its folder: title, picture if it has one, description."
    nb = read(path)
    title, claim = head_of(nb)
    if folder.name == "api":
        title = module_name(path.relative_to(folder))
    page, picture = path.relative_to(folder).as_posix(), figures / f"{path.stem}.png"
    alt = FIG_ALT.search("\n".join(text_of(c["source"]) for c in nb["cells"]))
    shown = ""
    if picture.exists() and alt:
        shutil.copy2(picture, pictures)
        shown = f"[![{alt[1]}](../pictures/{picture.name})]({page})\n\n"
    return f"::: {{.entry}}\n**[{title}]({page})**\n\n{shown}{claim}\n:::\n"


def natural(name: str) -> list:
    "A key that sorts fig2 before fig10."
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def in_sidebar(contents: str | list, nbs: Path) -> Iterator[Path]:
    "The notebooks of a section of the sidebar, in its order."
    for c in [contents] if isinstance(contents, str) else contents:
        if isinstance(c, dict):
            yield from in_sidebar(c["contents"], nbs)
        else:
            yield from sorted(nbs.glob(c), key=lambda p: (order_of(read(p)), natural(p.name)))


def write_indexes(nbs: Path, figures: Path):
    "Give each section of the sidebar that is in INDEXED a page that lists its notebooks, and link the section to it."
    import yaml

    quarto_yml = nbs / "_quarto.yml"
    config = yaml.safe_load(quarto_yml.read_text(encoding="utf-8"))
    sections = {s["section"]: s for s in config["website"]["sidebar"]["contents"] if isinstance(s, dict)}
    for name, title in INDEXED.items():
        folder, section = nbs / name, sections[title]
        entries = [entry(p, folder, figures, nbs / "pictures") for p in in_sidebar(section["contents"], nbs)]
        page = [f"---\ntitle: {title}\ntoc: false\n---\n", ":::: {.gallery}\n", *entries, "::::\n"]
        (folder / "index.md").write_text("\n".join(page), encoding="utf-8")
        section["href"] = f"{name}/index.md"
        if isinstance(section["contents"], str):
            section["contents"] = [p.relative_to(nbs).as_posix() for p in in_sidebar(section["contents"], nbs)]
    quarto_yml.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


# The pages


def comments(obj) -> dict[str, str]:
    "Name -> description of each parameter: of a pydantic model from its fields, else from the comments beside them."
    from fastcore.docments import docments

    if not hasattr(obj, "model_fields"):
        return {k: v.get("docment") for k, v in docments(obj, full=True).items()}
    beside = dict(re.findall(r"^    (\w+):.*?  # (.*)$", inspect.getsource(obj), re.M))
    return beside | {k: f.description for k, f in obj.model_fields.items() if f.description}


def as_code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def type_name(annotation) -> str:
    "An annotation without the modules of its names."
    if annotation is inspect.Parameter.empty:
        return ""
    return as_code(re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", inspect.formatannotation(annotation)))


def one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def parameters(obj) -> str:
    "A Markdown table of an object's parameters, from their comments or the help of its options; empty without them."
    try:
        sig, said = inspect.signature(obj, eval_str=True), comments(obj)
    except (ValueError, TypeError, OSError):
        return ""  # an exception or an enumeration
    rows = []
    for name, p in sig.parameters.items():
        a, text = p.annotation, said.get(name)
        while get_origin(a) is Annotated:
            text, a = text or getattr(a.__metadata__[0], "help", None), get_args(a)[0]
        default = "" if p.default is p.empty or "<" in repr(p.default) else as_code(repr(p.default))
        if name != "self":
            rows.append((f"`{name}`", type_name(a), default, one_line(text)))
    if not any(r[3] for r in rows):
        return ""
    if said.get("return"):
        rows.append(("returns", type_name(sig.return_annotation), "", one_line(said["return"])))
    shown = [("", "type", "default", ""), ("---",) * 4, *rows]
    if not any(r[2] for r in rows):  # an empty column takes the place of the others on a phone
        shown = [(*r[:2], r[3]) for r in shown]
    return "\n".join(f"| {' | '.join(r)} |" for r in shown)


def call(name: str, obj) -> str:
    "How an object is called: names and defaults, without types."
    out, stars = [], {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    for p in inspect.signature(obj).parameters.values():
        if p.name == "self":
            continue
        if p.kind is p.KEYWORD_ONLY and not any(o.startswith("*") for o in out):
            out.append("*")
        default = "" if p.default is p.empty else "=…" if "<" in repr(p.default) else f"={p.default!r}"
        out.append(stars.get(p.kind, "") + p.name + default)
    line = f"{name}({', '.join(out)})"
    return textwrap.fill(line, 88, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def describe(path: Path, api: Path, blob: str):
    "Give what nbdev shows of a module's symbols a link to the source, and a table of the commented parameters."
    names = path.relative_to(api).with_suffix("").parts
    nb, module = read(path), import_module(".".join(["parnb", *names]))
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    line_of = {n.name: n.lineno for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    source = f"{blob}/parnb/{'/'.join(names)}.py"
    for c in nb["cells"]:
        name = re.search(r"^show_doc\((\w+)\)", text_of(c["source"]), re.M)
        if not name or name[1] not in line_of or not c.get("outputs"):
            continue
        data, obj = c["outputs"][0]["data"], getattr(module, name[1])
        link = f"\n\n[source]({source}#L{line_of[name[1]]}){{.source-link}}"
        # what is said of an object without a docstring
        text = text_of(data["text/markdown"]).replace("*Call self as a function.*", "")
        text = re.sub(r"^(### .*)$", lambda m: m[1] + link, text, count=1, flags=re.M)
        if table := parameters(obj):
            shown = f"```python\n{call(name[1], obj)}\n```"
            text = re.sub(r"```python\n.*?\n```", lambda m: shown, text, count=1, flags=re.S) + f"\n\n{table}\n"
        data["text/markdown"] = text
    write(path, nb)


def render(project: Path, renderer: str, blob: str) -> Path:
    "Let nbdev prepare the pages of a project and the renderer make HTML of them; returns the folder of the site."
    from nbdev.serve import proc_nbs

    os.chdir(project)
    proc = proc_nbs(force=True, n_workers=min(4, os.cpu_count() or 1))
    for p in sorted((proc / "api").rglob("*.ipynb")):
        describe(p, proc / "api", blob)
    for f in ("nbdev.yml", "styles.css"):
        shutil.copy(project / "nbs" / f, proc / f)
    commands = dict(
        quarto=["quarto", "render", str(proc), "--no-cache", "--no-execute"],
        smalldocs=[sys.executable, "-m", "smalldocs.cli", "render", "-q", str(proc)],
    )
    done = subprocess.run(commands[renderer], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    messages = [line for line in done.stdout.splitlines() if not USUAL.search(line)]
    if messages:
        print("\n".join(messages), file=sys.stderr)
    if done.returncode:
        sys.exit(f"{renderer} failed, see above")
    return proc / "_docs"


def mathml(page: str) -> str:
    "Turn the TeX that a script would set in the reader's browser into MathML, and drop the script."
    from latex2mathml.converter import convert

    def as_mathml(m):
        shown = convert(html.unescape(m[3]), display="block" if m[1] == "display" else "inline")
        return f'<span class="math {m[1]}">{shown}</span>'

    tex = r'<span class="math (inline|display)">(\\\(|\\\[)(.*?)(?:\\\)|\\\])</span>'
    scripts = r"<link[^>]*katex[^>]*>|<script[^>]*(?:katex|mathjax|polyfill)[^>]*></script>"
    return re.sub(scripts, "", re.sub(tex, as_mathml, page, flags=re.S), flags=re.I)


class Loads(HTMLParser):
    "What a page loads, and its pictures without an alternative text."

    def __init__(self):
        super().__init__()
        self.loads, self.silent = [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        source = attrs.get(LOADED.get(tag)) or ""
        if source and (tag != "link" or attrs.get("rel") in ("stylesheet", "icon", "preload")):
            self.loads.append(source)
        if tag == "img" and not (attrs.get("alt") or "").strip():
            self.silent.append(source[:60])


def rename_pages(site: Path, proc: Path) -> dict[str, str]:
    "Give each page the address that nbdev names, whichever the renderer; returns old name -> new name."
    moved = {}
    for nb in proc.rglob("*.ipynb"):
        if "_docs" in nb.parts:
            continue
        name = re.search(r"^output-file:\s*(\S+)", text_of(read(nb)["cells"][0]["source"]), re.M)
        old = site / nb.relative_to(proc).with_suffix(".html")
        if not name or name[1] == old.name:
            continue
        if old.exists():
            old.rename(old.with_name(name[1]))
        moved[old.name] = name[1]
    return moved


def finish_page(path: Path, site: Path, address: str, text: str) -> tuple[str, list[str]]:
    "A page with links that stay in the site and maths without a script; and what is wrong with it."
    up, name = os.path.relpath(site, path.parent), path.relative_to(site).as_posix()
    inside = rf'(?<=href="){re.escape(address)}/([^"#]*)'
    text = re.sub(inside, lambda m: f"{up}/{m[1]}" if (site / m[1]).exists() else m[0], mathml(text))
    made_here = r'<div class="action-links"><a href="[^"]*/index\.md"[^>]*>.*?</a></div>'  # lists, which have no source
    text = re.sub(made_here, "", text)
    text = text.replace("</head>", f'<script src="{up}/site.js" defer></script></head>', 1)
    if 'id="quarto-document-content"' in text:
        skip = '<a class="skip" href="#quarto-document-content">Skip to the text</a>'
        text = re.sub(r"<body[^>]*>", lambda m: m[0] + skip, text, count=1)
    seen = Loads()
    seen.feed(text)
    wrong = [f"{name} loads {s} from another host" for s in seen.loads if re.match("(https?:)?//", s)]
    hint = 'give its cell `#| fig-alt: "…"`'
    wrong += [f"{name} shows the picture {s} without an alternative text: {hint}" for s in seen.silent]
    return text, wrong


def finish_search(text: str, site: Path) -> str:
    "The index of the search: pages also by their descriptions, those of the library by their modules; τ for its TeX."
    entries = json.loads(text)
    for e in entries:
        page, _, part = e["href"].partition("#")
        path = Path(page)
        if path.parts[0] == "api" and path.stem != "index":
            e["title"] = module_name(path.relative_to("api"))
        if not part and (site / path).exists():
            about = re.search(r'<meta name="description" content="([^"]*)"', (site / path).read_text(encoding="utf-8"))
            e["about"] = html.unescape(about[1]) if about else ""
        e["text"] = re.sub(r"\\tau(?![a-z])", "τ", e["text"])
    return json.dumps(entries, ensure_ascii=False)


def finish(site: Path, proc: Path, address: str):
    """Finish the pages that the renderer made.

    Exits with a sentence if a page loads something from another host or shows a picture without an alternative text."""
    moved, wrong = rename_pages(site, proc), []
    old_names = re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, moved)) + ")")
    for p in [*sorted(site.rglob("*.html")), site / "search.json", site / "sitemap.xml"]:
        text = p.read_text(encoding="utf-8")
        if moved:
            text = old_names.sub(lambda m: moved[m[1]], text)
        if p.suffix == ".html":
            text, found = finish_page(p, site, address, text)
            wrong += found
        elif p.name == "search.json":
            text = finish_search(text, site)
        p.write_text(text, encoding="utf-8")
    web_font = r'@import\s*(?:url\(\s*)?(["\']?)https?://[^"\')]*\1\s*\)?[^;]*;'
    for p in site.rglob("*.css"):  # themes load fonts from a host; the next font that they name is the reader's
        text = re.sub(web_font, "", p.read_text(encoding="utf-8"))
        loads = re.findall(r'url\(["\']?((?:https?:)?//[^)"\']+)', text)
        wrong += [f"{p.relative_to(site)} loads {u} from another host" for u in loads]
        p.write_text(text, encoding="utf-8")
    if wrong:
        sys.exit("\n".join(wrong))


def write_not_found(site: Path, base: str):
    "The page that a host shows for an address without a page; its links start at the site, at any depth."
    ways = {"index": "Start", "tutorials/clean_your_own": "Clean your own checkpoint", "leaderboard": "Leaderboard"}
    ways |= {"answers": "See for yourself", "findings": "What the results teach", "api/index": "Library"}
    links = "\n".join(f'<li><a href="{k}.html">{v}</a></li>' for k, v in ways.items())
    (site / "404.html").write_text(
        f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<base href="{base}/"><title>No such page – parnb</title><link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; background: Canvas; color: CanvasText; }}
main {{ font: 1rem/1.6 sans-serif; max-width: 36rem; margin: 15vh auto; padding: 0 1rem; }}
</style>
</head><body><main><h1>There is no page at this address</h1>
<p>It may have been renamed: pages are named after the notebooks of parnb. These exist:</p>
<ul>
{links}
</ul></main></body></html>
""",
        encoding="utf-8",
    )


def check_tools(renderer: str) -> str:
    "The renderer to use. Exits with a sentence if a tool is missing."
    if renderer == "auto":
        renderer = "quarto" if shutil.which("quarto") else "smalldocs"
    needed = ["nbdev", "latex2mathml", *(["smalldocs"] if renderer == "smalldocs" else [])]
    missing = [m for m in needed if find_spec(m) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        names = " and ".join(missing)
        sys.exit(f"{names} {verb} not installed, and the site is built with it: pip install -e '.[dev]'")
    if renderer == "quarto" and not shutil.which("quarto"):
        sys.exit("quarto is not on the PATH: install it from quarto.org, or omit --renderer")
    return renderer


def build(out: Path, fresh: bool = False, renderer: str = "auto") -> Iterator[str]:
    "Build the site into `out`; yields progress."
    renderer, cfg, begun = check_tools(renderer), settings(), time.monotonic()

    def so_far():
        return f"{time.monotonic() - begun:.0f} s"

    with tempfile.TemporaryDirectory() as tmp:
        project = copy_project(tmp)
        nbs, figures = project / "nbs", project / "figures"
        # executed notebooks write into the copy, and read no results but the released ones
        os.environ |= dict(PARNB_FIGURES=str(figures), PARNB_DATA=str(Path(tmp) / "data"), PARNB_QUIET="1")
        for line in execute_all(nbs, fresh):
            yield f"{line}, {so_far()}"
        found = {p: read(p) for p in notebooks(nbs)}
        silent = [p.stem for p, nb in found.items() if is_run(p, nbs, nb) and not has_outputs(nb)]
        if silent:
            yield f"without outputs, since they train; their pages show the command: {', '.join(silent)}"
        from parnb.show.report import write_report

        write_report(out=nbs / "everything.html")
        blob = f"{cfg['git_url']}/blob/{cfg['branch']}"
        write_indexes(nbs, figures)
        for p in notebooks(nbs):
            prepare(p, nbs, blob)
        yield f"rendering {len(notebooks(nbs))} notebooks with {renderer}, {so_far()}"
        site = render(project, renderer, blob)
        for f in ("everything.html", "site.js"):
            shutil.copy(nbs / f, site)
        base = f"/{cfg['doc_baseurl'].strip('/')}".rstrip("/")
        finish(site, project / "_proc", cfg["doc_host"].rstrip("/") + base)
        write_not_found(site, base)
        os.chdir(ROOT)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(site, out, dirs_exist_ok=True)  # a folder that cannot be removed, as a disk, is filled
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    pages = len(list(out.rglob("*.html")))
    yield f"{pages} pages, {size / 1e6:.1f} MB, {so_far()}: python -m http.server -d {os.path.relpath(out)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    fresh = "execute every figure and table from the released results, not only those without outputs"
    parser.add_argument("--out", type=Path, default=ROOT / "_docs", help="the folder to write; default: _docs")
    parser.add_argument("--fresh", action="store_true", help=fresh)
    choices = ["auto", "quarto", "smalldocs"]
    parser.add_argument(
        "--renderer", choices=choices, default="auto", help="default: quarto if installed, else smalldocs"
    )
    args = parser.parse_args()
    out = args.out.resolve()
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "search.json").exists())):
        parser.error(f"--out {out} exists and is no site of parnb: choose another folder")
    for line in build(out, args.fresh, args.renderer):
        print(line, flush=True)


if __name__ == "__main__":
    main()
