"The site is built once and looked at: its links, its pictures' texts, and, in a browser without a network, its search, its maths, on a phone and in the dark."
import functools
import http.server
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILDER = ROOT/'.ci'/'docs.py'


class Page(HTMLParser):
    "The links, anchors and pictures of a page."
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.pictures = [], {'', 'top'}, []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[k] for k in ('id', 'name') if attrs.get(k)}
        self.links += [attrs[k] for k in ('href', 'src') if attrs.get(k) is not None and tag != 'base']
        if tag == 'img': self.pictures.append((attrs.get('src', '')[:60], attrs.get('alt') or ''))


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder of the built site."
    out = tmp_path_factory.mktemp('site')/'docs'
    before = subprocess.run(['git', 'status', '--porcelain'], cwd=ROOT, capture_output=True, text=True).stdout
    done = subprocess.run([sys.executable, BUILDER, '--out', out, '--renderer', 'smalldocs'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout+done.stderr
    assert subprocess.run(['git', 'status', '--porcelain'], cwd=ROOT, capture_output=True, text=True).stdout == before, 'the build changed the tree'
    return out

@pytest.fixture(scope='module')
def pages(site): return {p.relative_to(site).as_posix(): Page(p) for p in sorted(site.rglob('*.html'))}

@pytest.fixture(scope='module')
def served(site):
    "The address it is served under."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

@pytest.fixture
def visit(browser, served):
    "Open a page of the site; it fails where a page asks another host for anything, or complains."
    contexts, wrong = [], []
    def go(name, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on('request', lambda r: r.url.startswith((served, 'data:')) or wrong.append(f'{name} asks for {r.url}'))
        page.on('console', lambda m: m.type == 'error' and wrong.append(f'{name} says {m.text}'))
        page.on('pageerror', lambda e: wrong.append(f'{name} says {e}'))
        page.goto(served+name, wait_until='networkidle')
        return page
    yield go
    for c in contexts: c.close()
    assert not wrong


def test_every_notebook_has_a_page(pages):
    stems = [re.sub(r'^\d+_', '', p.stem) for p in (ROOT/'nbs').rglob('*.ipynb') if not any(part[0] in '_.' for part in p.relative_to(ROOT).parts)]
    made = {Path(p).stem for p in pages}
    assert len(stems) > 40 and not set(stems)-made

def test_links_lead_somewhere(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links:
            to = urlsplit(link)
            if to.scheme or to.netloc: continue
            target = (site/name).parent/unquote(to.path) if to.path else site/name
            if target.is_dir(): target = target/'index.html'
            key = target.resolve().relative_to(site.resolve()).as_posix() if target.exists() else None
            if key is None or (key in pages and unquote(to.fragment) not in pages[key].anchors): broken.append(f'{name}: {link}')
    assert not broken

def test_links_between_notebooks_stay_in_the_site(pages):
    assert not [f'{n}: {l}' for n, p in pages.items() for l in p.links if 'parnb.github.io' in l]

def test_pictures_have_a_text(pages):
    pictures = [(n, *p) for n, page in pages.items() for p in page.pictures]
    assert len(pictures) > 40 and not [p for p in pictures if len(p[2]) < 15]

def test_runs_figures_and_tables_show_what_came_out(site):
    for name in ('par_clean', 'figures/fig1_outcomes', 'tables/tab01_main', 'tables/tab14_claims', 'method', 'tutorials/add_a_trigger', 'tutorials/add_a_cleaner'):
        assert 'cell-output' in (site/f'{name}.html').read_text(encoding='utf-8'), f'{name} has no output'
    silent = (site/'pretrain_clip.html').read_text(encoding='utf-8')
    assert ('cell-output' in silent) != ('parnb run 00_pretrain_clip' in silent), 'a page without outputs says how to make them'

def test_library_has_signatures_tables_and_sources(site):
    text = (site/'api'/'losses.html').read_text(encoding='utf-8')
    line = next(i for i, l in enumerate((ROOT/'parnb'/'losses.py').read_text(encoding='utf-8').splitlines(), 1) if l.startswith('def par_loss'))
    assert f'/blob/main/parnb/losses.py#L{line}"' in text
    rows = re.findall(r'<tr>((?:(?!</tr>).)*<code>tau</code>.*?)</tr>', text, re.S)
    assert any(all(w in row for w in ('float', '2.15', 'the threshold, in (0, 4]')) for row in rows)

def test_search_finds_tau(visit):
    page = visit('index.html')
    page.get_by_role('searchbox').or_(page.get_by_placeholder('Search')).first.fill('tau')
    page.wait_for_selector('.search-result-text, .smalldocs-search-results a')
    found = page.locator('.smalldocs-search-results a').all()
    assert any('tau' in a.inner_text().lower() for a in found)
    found[0].click()
    page.wait_for_load_state()
    assert page.title()

def test_maths_is_set_without_a_script(visit):
    page = visit('method.html')
    assert page.locator('math[display=block]').count() >= 4 and page.locator('math mfrac').count()
    assert page.locator('math').first.bounding_box()['height'] > 5
    assert '$' not in page.locator('main').inner_text() and '\\(' not in page.locator('main').inner_text()

@pytest.mark.parametrize('name', ['index.html', 'tables/tab01_main.html', 'api/experiments.html', 'figures/index.html', 'method.html', 'par_clean.html'])
def test_fits_a_phone(visit, name):
    page = visit(name, viewport=dict(width=390, height=844))
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    page.evaluate('window.scrollTo(9999, 0)')
    assert page.evaluate('window.scrollX') == 0

def test_dark_where_the_reader_wants_it(visit):
    light, dark = (visit('index.html', color_scheme=s).evaluate('getComputedStyle(document.body).backgroundColor') for s in ('light', 'dark'))
    def grey(c): return sum(map(int, re.findall(r'\d+', c)[:3]))/3
    assert grey(light) > 200 and grey(dark) < 80


def test_what_is_missing_is_one_sentence(tmp_path):
    hidden = f"import sys; sys.modules['smalldocs'] = None; sys.argv = ['docs', '--out', {str(tmp_path/'x')!r}, '--renderer', 'smalldocs']; sys.path.insert(0, {str(BUILDER.parent)!r}); sys.dont_write_bytecode = True\nimport docs; docs.find_spec = lambda m: None if m == 'smalldocs' else True\ndocs.main()"
    done = subprocess.run([sys.executable, '-c', hidden], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == "smalldocs is not installed, and the site is built with it: pip install -e '.[dev]'"

def test_a_picture_without_a_text_ends_the_build(tmp_path):
    (tmp_path/'site').mkdir()
    (tmp_path/'proc').mkdir()
    for f, text in (('a.html', '<img src="x.png" alt=" "><script src="https://cdn.example/x.js"></script>'), ('search.json', '[]'), ('sitemap.xml', '')): (tmp_path/'site'/f).write_text(text)
    code = f"import sys; sys.path.insert(0, {str(BUILDER.parent)!r}); sys.dont_write_bytecode = True\nfrom pathlib import Path\nimport docs; docs.finish(Path('site'), Path('proc'), 'https://here')"
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and 'a.html shows the picture x.png without' in done.stderr and 'a.html loads https://cdn.example/x.js from another host' in done.stderr
