"""The documentation site in _docs/, from the notebooks: `python .ci/docs.py`, then `python -m http.server -d _docs`.

Works on a copy: the source tree stays as it is. nbdev prepares the pages; Quarto renders them where it is on the PATH, else smalldocs.
Pages show the outputs that are saved in their notebooks. A figure or table without any is executed from the results on file, which trains nothing;
with --fresh all of them are. Nothing that a page loads comes from another host: maths is MathML, and scripts, styles and fonts lie in the site.
"""
import argparse
import ast
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
FENCE = re.compile(r'^(`{3,}|~{3,}).*?^\1[ \t]*$', re.M | re.S)
PICTURES = {'.png', '.svg', '.jpg', '.jpeg', '.gif', '.webp'}
LOADED = dict(img='src', script='src', source='src', iframe='src', link='href')  # tags that a browser follows by itself
INDEXED = dict(figures='Figures', tables='Tables', tutorials='Tutorials', api='Library')  # folders that get a page of their own


def text_of(lines: str | list[str]) -> str: return lines if isinstance(lines, str) else ''.join(lines)


def head_of(nb: dict) -> tuple[str, str]:
    "Title and one-line claim, from a notebook's first cell."
    src = text_of(nb['cells'][0]['source'])
    return re.search(r'^# (.+)$', src, re.M)[1], re.search(r'^> (.+)$', src, re.M)[1]


def read(path: Path) -> dict: return json.loads(path.read_text(encoding='utf-8'))


def write(path: Path, nb: dict): path.write_text(json.dumps(nb, indent=1, ensure_ascii=False)+'\n', encoding='utf-8')


def has_outputs(nb: dict) -> bool: return any(c.get('outputs') for c in nb['cells'])


def notebooks(nbs: Path) -> list[Path]: return sorted(p for p in nbs.rglob('*.ipynb') if not any(part[0] in '_.' for part in p.relative_to(nbs).parts))


# The copy: outputs, links, alternative texts, index pages

def execute(path: Path) -> str:
    "Execute a figure or table of the copy from what is on file; what went wrong, or nothing."
    from parnb.core import ParnbError, execute_notebook
    from papermill.inspection import inspect_notebook
    values = {k: v for k, v in dict(compute=False).items() if k in inspect_notebook(str(path))}
    done = path.with_name(f'.{path.name}')
    try: execute_notebook(path, done, values)
    except ParnbError as e: return f'{path.stem}: {e}'
    nb = read(done)
    nb['cells'] = [c for c in nb['cells'] if 'injected-parameters' not in c['metadata'].get('tags', [])]
    done.unlink()
    write(path, nb)
    return ''


def relink(text: str, page: Path, nbs: Path, blob: str) -> str:
    "Let the links of a Markdown text hold in the site: pictures of the repository are copied to it, its other files lie on the repository's host."
    def moved(m):
        there = Path(os.path.normpath(page.parent/m[2]))
        if not there.is_relative_to(nbs):
            name = os.path.relpath(there, nbs.parent)
            if there.suffix not in PICTURES: return f'{m[1]}{blob}/{name}'
            if not there.exists(): sys.exit(f'{page.relative_to(nbs)} shows {name}, which does not exist')
            there = Path(shutil.copy2(there, nbs/'pictures'))
        elif there.is_dir(): there = there/'index.md'
        return m[1]+os.path.relpath(there, page.parent)
    text = re.sub(r'!\[([^]]*)\]\(https?://[^)]*\)', r'\1', text)  # a badge is its words here
    out, end = [], 0
    for f in FENCE.finditer(text): out, end = [*out, LINK.sub(moved, text[end:f.start()]), f[0]], f.end()
    return ''.join(out)+LINK.sub(moved, text[end:])


def plain(text: str) -> str:
    "The last paragraph of a Markdown text, without its marks."
    text = re.sub(r'\[([^]]*)\]\([^)]*\)|[*_`$\\#]+', r'\1', text.strip().split('\n\n')[-1])
    return ' '.join(text.split()).replace('"', "'")


def prepare(path: Path, nbs: Path, blob: str):
    "Give a notebook of the copy what its page needs: links that hold, alternative texts, and a word where it has no outputs."
    nb = read(path)
    title, said = head_of(nb)[0], ''
    for c in nb['cells']:
        src = text_of(c['source'])
        if c['cell_type'] == 'markdown':
            src = relink(src, path, nbs, blob)
            said = plain(src) or said
        for o in c.get('outputs', []):
            data = o.get('data', {})
            if 'text/markdown' in data: data['text/markdown'] = relink(text_of(data['text/markdown']), path, nbs, blob)
            if any(k.startswith('image/') for k in data) and not re.search(r'^#\|\s*fig-alt:', src, re.M): src = f'#| fig-alt: "{title}: {said}"\n{src}'
        c['source'] = src.splitlines(True)
    if path.parent != nbs/'api' and path.name != 'index.ipynb' and any(c['cell_type'] == 'code' for c in nb['cells']) and not has_outputs(nb):
        note = f'::: {{.callout-note}}\n## Without outputs\nThis notebook trains, so its outputs are not kept with it. `parnb run {path.stem}` makes them, and says where the executed notebook is.\n:::\n'
        nb['cells'].insert(1, dict(cell_type='markdown', id='without', metadata={}, source=note.splitlines(True)))
    if path == nbs/'report.ipynb': nb['cells'].append(dict(cell_type='markdown', id='everything', metadata={}, source=['[The report](everything.html) as this site was built.']))
    write(path, nb)


def write_index(folder: Path, title: str, figures: Path, pictures: Path):
    "The page of a folder: each notebook with its claim, and its picture where it has one."
    out = [f'---\ntitle: {title}\ntoc: false\n---\n', ':::: {.gallery}\n']
    for path in sorted(folder.glob('*.ipynb')):
        nb = read(path)
        name, claim = head_of(nb)
        entry = f'[{name if folder.name != "api" else f"parnb.{name}"}]({path.name})'
        picture = figures/f'{path.stem}.png'
        alt = re.search(r'^#\|\s*fig-alt:\s*"(.*)"$', '\n'.join(text_of(c['source']) for c in nb['cells']), re.M)
        if picture.exists() and alt:
            shutil.copy2(picture, pictures)
            out.append(f'::: {{.entry}}\n**{entry}**\n\n[![{alt[1]}](../pictures/{picture.name})]({path.name})\n\n{claim}\n:::\n')
        else: out.append(f'::: {{.entry}}\n**{entry}**\n\n{claim}\n:::\n')
    out.append('::::')
    (folder/'index.md').write_text('\n'.join(out)+'\n', encoding='utf-8')


def link_sections(quarto_yml: Path, nbs: Path):
    "Let each section of the sidebar whose notebooks have a folder lead to the page of that folder."
    import yaml
    config = yaml.safe_load(quarto_yml.read_text(encoding='utf-8'))
    for s in config['website']['sidebar']['contents']:
        if isinstance(s, str): continue
        folders = {str(Path(f).parent) for f in s['contents'] if isinstance(f, str)}
        if len(folders) == 1 and (index := nbs/folders.pop()/'index.md').exists() and s['section'] == INDEXED.get(index.parent.name): s['href'] = index.relative_to(nbs).as_posix()
    quarto_yml.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding='utf-8')


# The pages

def parameters(obj) -> str:
    "A Markdown table of what an object is called with, from the comments beside its parameters or the help of its options; empty where neither says anything."
    from fastcore.docments import docments
    try: sig, source = inspect.signature(obj, eval_str=True), inspect.getsource(obj)
    except (ValueError, TypeError): return ''  # an exception, an enumeration
    said = {k: v.get('docment') for k, v in docments(obj, full=True).items()}
    if hasattr(obj, 'model_fields'): said = dict(re.findall(r'^    (\w+):.*?  # (.*)$', source, re.M))
    def kind(a):
        if a is inspect.Parameter.empty: return ''
        return '`'+re.sub(r'\b(?:[a-z_]\w*\.)+(?=[A-Za-z])', '', inspect.formatannotation(a)).replace('|', '\\|')+'`'
    def clean(text): return ' '.join((text or '').split()).replace('|', '\\|')
    rows = []
    for name, p in sig.parameters.items():
        a, text = p.annotation, said.get(name)
        while get_origin(a) is Annotated: text, a = text or getattr(a.__metadata__[0], 'help', None), get_args(a)[0]
        default = '' if p.default is p.empty or '<' in repr(p.default) else f'`{p.default!r}`'.replace('|', '\\|')
        if name != 'self': rows.append((f'`{name}`', kind(a), default, clean(text)))
    if not any(r[3] for r in rows): return ''
    if said.get('return'): rows.append(('returns', kind(sig.return_annotation), '', clean(said['return'])))
    return '\n'.join(['| | type | default | |', '|---|---|---|---|', *(f"| {' | '.join(r)} |" for r in rows)])


def called(name: str, obj) -> str:
    "How an object is called: names and defaults, without types."
    out, stars = [], {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
    for p in inspect.signature(obj).parameters.values():
        if p.name == 'self': continue
        if p.kind is p.KEYWORD_ONLY and not any(o.startswith('*') for o in out): out.append('*')
        default = '' if p.default is p.empty else '=…' if '<' in repr(p.default) else f'={p.default!r}'
        out.append(stars.get(p.kind, '')+p.name+default)
    return f"{name}({', '.join(out)})"


def describe(path: Path, blob: str):
    "Give what nbdev shows of a module's symbols a link to the source, and a table of the parameters where they are commented."
    nb, module = read(path), import_module(f"parnb.{re.sub(r'^[0-9]+_', '', path.stem)}")
    at = {n.name: n.lineno for n in ast.parse(Path(module.__file__).read_text(encoding='utf-8')).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    for c in nb['cells']:
        name = re.search(r'^show_doc\((\w+)\)', text_of(c['source']), re.M)
        if not name or name[1] not in at or not c.get('outputs'): continue
        data, obj = c['outputs'][0]['data'], getattr(module, name[1])
        text = re.sub(r'^(### .*)$', lambda m: f"{m[1]}\n\n[source]({blob}/parnb/{Path(module.__file__).name}#L{at[name[1]]}){{.source-link}}", text_of(data['text/markdown']), count=1, flags=re.M)
        if table := parameters(obj):
            call = textwrap.fill(called(name[1], obj), 88, subsequent_indent='    ', break_long_words=False, break_on_hyphens=False)
            text = re.sub(r'```python\n.*?\n```', lambda m: f'```python\n{call}\n```', text, count=1, flags=re.S)+f'\n\n{table}\n'
        data['text/markdown'] = text
    write(path, nb)


def render(project: Path, renderer: str, blob: str) -> Path:
    "Have nbdev prepare the pages of a project and the renderer make HTML of them; the folder with the site."
    from nbdev.config import get_config
    from nbdev.serve import proc_nbs
    os.chdir(project)
    proc = proc_nbs(force=True, n_workers=min(4, os.cpu_count() or 1))
    for p in sorted((proc/'api').glob('*.ipynb')): describe(p, blob)
    for f in ('nbdev.yml', 'styles.css'): shutil.copy(project/'nbs'/f, proc/f)
    command = dict(quarto=['quarto', 'render', str(proc), '--no-cache', '--no-execute'], smalldocs=[sys.executable, '-m', 'smalldocs.cli', 'render', '-q', str(proc)])[renderer]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = [l for l in done.stdout.splitlines() if not re.search('output-file is not read|format commonmark is not built|is ignored$', l)]  # addresses are set afterwards, the rest is Quarto's own
    if done.returncode or said: print('\n'.join(said), file=sys.stderr)
    if done.returncode: sys.exit(f'{renderer} failed, see above')
    return proc/'_docs'


def mathml(page: str) -> str:
    "TeX that a script would set in the reader's browser becomes MathML, and the script goes."
    from latex2mathml.converter import convert
    def set_(m): return convert(html.unescape(m[3]), display='block' if m[1] == 'display' else 'inline')
    page = re.sub(r'<span class="math (inline|display)">(\\\(|\\\[)(.*?)(?:\\\)|\\\])</span>', lambda m: f'<span class="math {m[1]}">{set_(m)}</span>', page, flags=re.S)
    return re.sub(r'<link[^>]*katex[^>]*>|<script[^>]*(?:katex|mathjax|polyfill)[^>]*></script>', '', page, flags=re.I)


class Loads(HTMLParser):
    "What a page loads, and its pictures without an alternative text."
    def __init__(self):
        super().__init__()
        self.loads, self.silent = [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        source = attrs.get(LOADED.get(tag)) or ''
        if source and (tag != 'link' or attrs.get('rel') in ('stylesheet', 'icon', 'preload')): self.loads.append(source)
        if tag == 'img' and not (attrs.get('alt') or '').strip(): self.silent.append(source[:60])


def finish(site: Path, proc: Path, address: str):
    "One address a page, whichever renderer; links between pages that stay in the site; maths without a script. Ends with a sentence where a page loads something from elsewhere or shows a picture without an alternative text."
    moved, wrong = {}, []
    for nb in proc.rglob('*.ipynb'):
        if '_docs' in nb.parts: continue
        name = re.search(r'^output-file:\s*(\S+)', text_of(read(nb)['cells'][0]['source']), re.M)
        old = site/nb.relative_to(proc).with_suffix('.html')
        if not name or name[1] == old.name: continue
        if old.exists(): old.rename(old.with_name(name[1]))
        moved[old.name] = name[1]
    old_names = re.compile(r'(?<![\w-])('+'|'.join(map(re.escape, moved))+')')
    pages = sorted(site.rglob('*.html'))
    for p in [*pages, site/'search.json', site/'sitemap.xml']:
        text = p.read_text(encoding='utf-8')
        if moved: text = old_names.sub(lambda m: moved[m[1]], text)
        if p.suffix == '.html':
            up = os.path.relpath(site, p.parent)
            text = re.sub(rf'(?<=href="){re.escape(address)}/([^"#]*)', lambda m: f'{up}/{m[1]}' if (site/m[1]).exists() else m[0], mathml(text))
            seen = Loads()
            seen.feed(text)
            name = p.relative_to(site).as_posix()
            wrong += [f'{name} loads {s} from another host' for s in seen.loads if re.match('(https?:)?//', s)]
            wrong += [f'{name} shows the picture {s} without an alternative text: give its cell `#| fig-alt: "…"`' for s in seen.silent]
        p.write_text(text, encoding='utf-8')
    for p in site.rglob('*.css'):  # themes ask a host of fonts for theirs; the next font they name is the reader's own
        text = re.sub(r'@import\s*(?:url\(\s*)?(["\']?)https?://[^"\')]*\1\s*\)?[^;]*;', '', p.read_text(encoding='utf-8'))
        wrong += [f'{p.relative_to(site)} loads {u} from another host' for u in re.findall(r'url\(["\']?((?:https?:)?//[^)"\']+)', text)]
        p.write_text(text, encoding='utf-8')
    if wrong: sys.exit('\n'.join(wrong))


def build(out: Path, fresh: bool = False, renderer: str = 'auto') -> Iterator[str]:
    "Build the site into `out`; says what it does."
    renderer = ('quarto' if shutil.which('quarto') else 'smalldocs') if renderer == 'auto' else renderer
    needed = ['nbdev', 'latex2mathml', *(['smalldocs'] if renderer == 'smalldocs' else [])]
    missing = [m for m in needed if find_spec(m) is None]
    if missing: sys.exit(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, and the site is built with it: pip install -e '.[dev]'")
    if renderer == 'quarto' and not shutil.which('quarto'): sys.exit('quarto is not on the PATH: install it from quarto.org, or leave --renderer out')
    import configparser
    config = configparser.ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    cfg, begun = config['DEFAULT'], time.monotonic()
    def so_far(): return f'{time.monotonic()-begun:.0f} s'
    with tempfile.TemporaryDirectory() as tmp:
        project = Path(tmp).resolve()/'project'
        nbs, figures = project/'nbs', project/'figures'
        ignore = shutil.ignore_patterns('.*', '_proc', '_docs', 'sidebar.yml')
        for folder in ('nbs', 'figures', 'parnb'): shutil.copytree(ROOT/folder, project/folder, ignore=ignore)
        shutil.copy(ROOT/'settings.ini', project)
        (nbs/'pictures').mkdir()
        os.environ |= dict(PARNB_FIGURES=str(figures), PARNB_QUIET='1')  # what is executed writes into the copy
        drawn = [p for p in notebooks(nbs) if p.parent in (nbs/'figures', nbs/'tables') and (fresh or not has_outputs(read(p)))]
        if drawn:
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                for i, (p, error) in enumerate(zip(drawn, pool.map(execute, drawn))):
                    if error: sys.exit(f'{error}')
                    yield f'drawn from the results on file: {p.stem}, {i+1} of {len(drawn)}, {so_far()}'
        silent = [p.stem for p in notebooks(nbs) if p.parent != nbs/'api' and p.name != 'index.ipynb' and not has_outputs(read(p))]
        if silent: yield f"without outputs, since they train; their pages say how to make them: {', '.join(silent)}"
        from parnb.claims import write_report
        write_report(out=nbs/'everything.html')
        blob = f"{cfg['git_url']}/blob/{cfg['branch']}"
        for folder, title in INDEXED.items(): write_index(nbs/folder, title, figures, nbs/'pictures')
        for p in notebooks(nbs): prepare(p, nbs, blob)
        link_sections(nbs/'_quarto.yml', nbs)
        yield f'rendering {len(notebooks(nbs))} notebooks with {renderer}, {so_far()}'
        site = render(project, renderer, blob)
        shutil.copy(nbs/'everything.html', site)
        finish(site, project/'_proc', cfg['doc_host'].rstrip('/')+'/'+cfg['doc_baseurl'].strip('/'))
        os.chdir(ROOT)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(site, out)
    size = sum(f.stat().st_size for f in out.rglob('*') if f.is_file())
    yield f"{len(list(out.rglob('*.html')))} pages, {size/1e6:.1f} MB, {so_far()}: python -m http.server -d {os.path.relpath(out)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT/'_docs', help='the folder to be made; _docs by default')
    parser.add_argument('--fresh', action='store_true', help='execute every figure and table from the results on file, not only those without outputs')
    parser.add_argument('--renderer', choices=['auto', 'quarto', 'smalldocs'], default='auto', help='quarto where it is on the PATH, else smalldocs')
    args = parser.parse_args()
    for line in build(args.out.resolve(), args.fresh, args.renderer): print(line, flush=True)


if __name__ == '__main__': main()
