"""The site is built once and checked: its links, its pictures, and, in a browser without a network, its search, its
maths, and how it looks on a phone and in the dark."""

import functools
import html
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

ROOT = Path(__file__).resolve().parents[1]
BUILDER = ROOT / ".ci" / "docs.py"
PATIENCE_MS = 180_000  # for a page or an element: other processes may use every core
expect.set_options(timeout=PATIENCE_MS)
BUILD_SECONDS = 1800  # the build takes about a minute on two idle cores
SHOWN = ["par_clean", "figures/fig1_outcomes", "tables/tab01_main", "tables/tab14_claims", "method"]
SHOWN += ["tutorials/add_a_trigger", "tutorials/add_a_cleaner"]
PHONE = ["index.html", "tables/tab01_main.html", "api/study/runs.html", "figures/index.html", "method.html"]
PHONE += ["par_clean.html", "leaderboard.html", "figures/fig14_answers.html", "answers.html"]
PHONE += ["tables/tab14_claims.html", "sources.html", "404.html", "glossary.html", "tutorials/clean_your_own.html"]
FOUND = ".smalldocs-search-results a"
MODULES_IN_ORDER = ["core", "registry", "data/scenes", "training/loop", "attacks/base", "cleaners/base", "cleaners/par"]
MODULES_IN_ORDER += ["study/runs", "study/measure", "show/tables", "cli/main"]


class Page(HTMLParser):
    "The links, anchors and pictures of a page."

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.pictures, self.sidebar = [], {"", "top"}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        self.links += [attrs[k] for k in ("href", "src") if attrs.get(k) is not None and tag != "base"]
        if tag == "a" and "sidebar-link" in attrs.get("class", "") and "href" in attrs:
            self.sidebar.append(os.path.normpath(attrs["href"]))
        if tag == "img":
            self.pictures.append((attrs.get("src", "")[:60], attrs.get("alt") or ""))


def git_status():
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout


def run_python(*args, cwd=ROOT):
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=BUILD_SECONDS)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder of the built site."
    out, before = tmp_path_factory.mktemp("site") / "docs", git_status()
    done = run_python(BUILDER, "--out", out, "--renderer", "smalldocs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert git_status() == before, "the build changed the tree"
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {p.relative_to(site).as_posix(): Page(p) for p in sorted(site.rglob("*.html"))}


def test_an_address_without_a_page(site, pages):
    text = (site / "404.html").read_text(encoding="utf-8")
    assert '<base href="/parnb/">' in text  # so that links work at any depth
    links = [link for link in pages["404.html"].links if not link.startswith("data:")]
    assert len(links) >= 6 and all((site / link).exists() for link in links)


@pytest.fixture(scope="module")
def served(site):
    "The address at which it is served."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def visit(browser, served):
    "Open a page of the site; the test fails if a page loads anything from another host or reports an error."
    contexts, wrong = [], []

    def go(name, **settings):
        context = browser.new_context(**settings)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: r.url.startswith((served, "data:")) or wrong.append(f"{name} loads {r.url}"))
        page.on("console", lambda m: m.type == "error" and wrong.append(f"{name} reports {m.text}"))
        page.on("pageerror", lambda e: wrong.append(f"{name} reports {e}"))
        page.goto(served + name, wait_until="load")  # its scripts have run then
        return page

    yield go
    for c in contexts:
        c.close()
    assert not wrong


def test_every_notebook_has_a_page(pages):
    nbs = ROOT / "nbs"
    paths = [p.relative_to(nbs) for p in nbs.rglob("*.ipynb")]
    paths = [p for p in paths if not any(part[0] in "_." for part in p.parts)]
    wanted = {p.with_name(re.sub(r"^\d+_", "", p.stem) + ".html").as_posix() for p in paths}
    assert len(wanted) > 40 and not wanted - set(pages)


def test_links_lead_somewhere(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links:
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            target = (site / name).parent / unquote(to.path) if to.path else site / name
            if target.is_dir():
                target = target / "index.html"
            key = target.resolve().relative_to(site.resolve()).as_posix() if target.exists() else None
            if key is None or (key in pages and unquote(to.fragment) not in pages[key].anchors):
                broken.append(f"{name}: {link}")
    assert not broken


def test_links_between_notebooks_stay_in_the_site(pages):
    assert not [f"{n}: {link}" for n, p in pages.items() for link in p.links if "parnb.github.io" in link]


def test_pictures_have_a_text(pages):
    pictures = [(n, *p) for n, page in pages.items() for p in page.pictures]
    assert len(pictures) > 40 and not [p for p in pictures if len(p[2]) < 15]


def test_the_sidebar_lists_the_modules_in_order(pages):
    "Rooms from bottom to top, and the modules of a room by the `order` of their notebooks."
    listed = [p for p in pages["index.html"].sidebar if p in {f"api/{m}.html" for m in MODULES_IN_ORDER}]
    assert listed == [f"api/{m}.html" for m in MODULES_IN_ORDER]


def test_runs_figures_and_tables_show_their_outputs(site):
    for name in SHOWN:
        assert "cell-output" in (site / f"{name}.html").read_text(encoding="utf-8"), f"{name} has no output"
    silent = (site / "pretrain_clip.html").read_text(encoding="utf-8")
    has_command = "parnb run 00_pretrain_clip" in silent
    assert ("cell-output" in silent) != has_command, "a page without outputs shows the command that makes them"


def test_library_has_signatures_tables_and_sources(site):
    text = (site / "api" / "cleaners" / "par.html").read_text(encoding="utf-8")
    lines = (ROOT / "parnb" / "cleaners" / "par.py").read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, 1) if line.startswith("def par_loss"))
    assert f'/blob/main/parnb/cleaners/par.py#L{number}"' in text
    rows = re.findall(r"<tr>((?:(?!</tr>).)*<code>tau</code>.*?)</tr>", text, re.S)
    assert any(all(w in row for w in ("float", "2.15", "threshold")) for row in rows)


def search(page, text):
    "What a search for a text finds, the first first."
    page.get_by_role("searchbox").or_(page.get_by_placeholder("Search")).first.fill(text)
    page.wait_for_selector(FOUND)
    page.wait_for_timeout(500)  # the box waits for the last letter
    return page.locator(FOUND).all()


SEARCHES = {  # what stands among the first so many
    "tau": ("method.html", 6),
    "how do I clean my own model": ("tutorials/clean_your_own.html", 1),
    "is my checkpoint backdoored": ("audit.html", 3),
    "what is PAR": ("method.html", 2),
    "what is ASR": ("glossary.html#asr", 1),
    "put my defence on the board": ("leaderboard.html", 6),
    "make_run": ("api/study/runs.html#make_run", 1),
}


@pytest.mark.parametrize("text", SEARCHES)
def test_search_finds(visit, text):
    "Guides stand above the library, unless a name of the library was typed; no page fills the list."
    page, (wanted, places) = visit("index.html"), SEARCHES[text]
    found = search(page, text)
    hrefs = [a.get_attribute("href").removeprefix("./") for a in found]
    assert any(h.startswith(wanted) for h in hrefs[:places]), hrefs[:6]
    assert max(Counter(h.split("#")[0] for h in hrefs).values()) <= 2
    found[0].click()
    page.wait_for_url(lambda url: unquote(url).endswith(f"/{hrefs[0]}"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everyone_can_read_it(visit, pages, scheme, width):
    "No violation of WCAG 2.1 AA that axe finds, also beside the results of a search; on all pages with PARNB_SITE=all."
    wrong = []
    for name in pages if os.environ.get("PARNB_SITE") == "all" else PHONE:
        page = visit(name, color_scheme=scheme, viewport=dict(width=width, height=900))
        if name == "method.html" and width > 1000:
            search(page, "tau")
        answer = Axe().run(page, options=dict(runOnly=["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"])).response
        wrong += [f"{name}: {v['id']}: {n['html'][:90]}" for v in answer["violations"] for n in v["nodes"][:3]]
        page.context.close()  # two hundred open pages take gigabytes
    assert not wrong, "\n".join(wrong)


def test_maths_needs_no_script(visit):
    page = visit("method.html")
    assert page.locator("math[display=block]").count() >= 4 and page.locator("math mfrac").count()
    assert page.locator("math").first.bounding_box()["height"] > 5
    text = page.locator("main").inner_text()
    assert "$" not in text and "\\(" not in text


@pytest.mark.parametrize("name", PHONE)
def test_fits_a_phone(visit, name):
    page = visit(name, viewport=dict(width=390, height=844))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("window.scrollTo(9999, 0)")
    assert page.evaluate("window.scrollX") == 0


def test_the_first_page_leads_on(visit):
    "On a phone: a picture of what a backdoor does, the result, and four ways on."
    page = visit("index.html", viewport=dict(width=390, height=844))
    assert "fig14_answers" in page.locator("main img").first.get_attribute("src")
    text = page.locator("main").inner_text()
    assert 0 < text.index("In short") < text.index("Try it") < text.index("Verdicts")
    ways = page.locator("main ul:has(a[href='#try-it']) > li")
    assert ways.count() == 4
    boxes = [ways.nth(k).bounding_box() for k in range(4)]
    assert all(b["x"] >= 0 and b["x"] + b["width"] <= 390 for b in boxes)
    for k in range(4):
        anchor = ways.nth(k).locator("strong a").get_attribute("href")
        assert page.locator(f"main {anchor}").count(), anchor


def test_the_sidebar_shows_where_one_is(visit):
    "The last table is far down in the list."
    page = visit("tables/tab25_suspects.html", viewport=dict(width=1400, height=700))
    one = page.locator("#quarto-sidebar [aria-current]").bounding_box()
    assert 0 < one["y"] < one["y"] + one["height"] <= 700
    assert page.evaluate("scrollY") == 0


def test_the_sidebar_of_a_phone_scrolls(visit):
    "Opened, it shows where one is; its last entry can be reached; Escape closes it."
    page = visit("tables/tab25_suspects.html", viewport=dict(width=390, height=844))
    bar, button = page.locator("#quarto-sidebar"), page.locator(".quarto-btn-toggle")
    assert not bar.locator("a").first.is_visible(), "closed, the keyboard passes it by"
    button.click()
    expect(bar).to_be_in_viewport(ratio=0.99)
    expect(bar.locator("[aria-current]")).to_be_in_viewport(ratio=1)
    last = bar.locator("a:visible").last
    page.mouse.move(100, 500)
    page.mouse.wheel(0, 9999)
    expect(last).to_be_in_viewport(ratio=1)
    last.focus()
    page.keyboard.press("Escape")
    expect(button).to_have_attribute("aria-expanded", "false")
    assert button.evaluate("e => e === document.activeElement")


def test_the_keyboard_reaches_what_a_mouse_reaches(visit):
    "First a link past the bar, on which the focus is seen; in the sidebar what opens a section."
    page = visit("index.html")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the text")).to_be_in_viewport(ratio=1)
    page.keyboard.press("Tab")
    seen = page.evaluate(
        "(({ outlineColor, outlineWidth }) => [outlineColor, outlineWidth])(getComputedStyle(document.activeElement))"
    )
    assert page.evaluate("document.activeElement.className") == "navbar-brand" and seen == ["rgb(255, 255, 255)", "2px"]
    bar = page.locator("#quarto-sidebar")
    for name in ("Run", "Section Tables"):  # of the second, the name is a link
        button = bar.get_by_role("button", name=name, exact=True)
        button.focus()
        for key, state in (("Enter", "true"), ("Space", "false")):
            page.keyboard.press(key)
            expect(button).to_have_attribute("aria-expanded", state)
            expect(bar.locator(".collapsing")).to_have_count(0)
    assert not page.locator("#quarto-sidebar a[data-bs-toggle]:not([role=button])").count()


@pytest.mark.parametrize("width", [1280, 390])
def test_commands_and_sentences_wrap(visit, width):
    "Printed tables scroll; the name of an option stays whole."
    page = visit("tutorials/clean_your_own.html", viewport=dict(width=width, height=900))
    cut = "es => es.filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"
    assert page.locator("main pre.sh").count() >= 4 and not page.locator("main pre.sh").evaluate_all(cut)
    printed = page.locator("main .cell-output-stdout pre")
    assert page.locator("main .cell-output-stdout pre.wraps").count() >= 3
    assert not page.locator("main .cell-output-stdout pre.wraps").evaluate_all(cut)
    table = printed.filter(has_text="clean accuracy").filter(has_text="before").first
    assert table.evaluate("e => getComputedStyle(e.firstElementChild || e).whiteSpace") == "pre"
    codes = page.locator("main p code")
    options = ("--tau", "--root", "--unreadable", "--caption-column")
    names = [codes.filter(has_text=re.compile(f"^{n}$")).first for n in options]
    assert len({n.bounding_box()["height"] for n in names}) == 1, "a name is broken into two lines"


def test_a_picture_on_a_phone_can_be_read(visit):
    "It is wider than the screen, and scrolls in a region that the keyboard reaches."
    page = visit("figures/fig10_frontier.html", viewport=dict(width=390, height=844))
    picture = page.locator("main .cell-output-display img")
    assert round(picture.bounding_box()["width"]) == 640
    assert page.locator("main .cell-output-display:has(img)").evaluate("e => [e.tabIndex, e.scrollWidth]") == [0, 640]


@pytest.mark.parametrize("width", [1400, 390])
def test_the_last_column_of_a_table_can_be_seen(visit, width):
    "Without scrolling on a wide screen; else by scrolling, and the first column stays in view."
    page = visit("tables/tab01_main.html", viewport=dict(width=width, height=900))
    head = page.locator("table.dataframe thead th")
    table, first, last = page.locator("table.dataframe").first, head.nth(1), head.last
    before = first.bounding_box()["x"]
    if width < 1000:
        assert last.bounding_box()["x"] > width
        scrolls = "t => { while (t.scrollWidth <= t.clientWidth || getComputedStyle(t).overflowX == 'visible') "
        scrolls += "t = t.parentElement; t.scrollLeft = 9999; return t.tabIndex; }"
        assert table.evaluate(scrolls) == 0, "the keyboard reaches what scrolls"
    box = last.bounding_box()
    assert box["x"] + box["width"] <= width and abs(first.bounding_box()["x"] - before) < 3


def test_heads_stand_over_their_columns(visit):
    "Of a table with an index, too."
    tables = visit("geometry.html").locator("table.dataframe").all()
    assert tables
    for table in tables:
        head = table.locator("thead tr:first-child > :nth-child(2)").bounding_box()
        cell = table.locator("tbody tr:first-child > :nth-child(2)").bounding_box()
        assert abs(head["x"] - cell["x"]) < 2


def test_sources_exist(pages):
    links = {link for p in pages.values() for link in p.links if "/blob/main/" in link}
    missing = [
        link for link in links if not (ROOT / unquote(re.split("[#?]", link.split("/blob/main/")[1])[0])).exists()
    ]
    assert {".ipynb", ".json"} <= {Path(link).suffix for link in links} and not missing


def test_tables_have_their_captions(site):
    "Those of the files in figures, also where a page has several."
    for path in sorted((ROOT / "nbs" / "tables").glob("*.ipynb")):
        files = sorted((ROOT / "figures").glob(f"{path.stem}*.md"))
        text = re.sub("<[^>]*>", "", (site / "tables" / f"{path.stem}.html").read_text(encoding="utf-8"))
        for f in files:
            title = json.loads(f.with_suffix(".json").read_text(encoding="utf-8"))["title"]
            assert f": {title.replace(chr(39), '’')}." in html.unescape(text), (
                f"{path.stem} lacks the caption of {f.name}"
            )


def test_pages_of_the_library_have_titles_of_their_own(site):
    titles = [
        re.search("<title>(.*?)</title>", p.read_text(encoding="utf-8"))[1] for p in (site / "api").rglob("*.html")
    ]
    assert len(set(titles)) == len(titles) > 80 and "parnb.study.audit – parnb" in titles


def test_a_figure_comes_before_its_code(visit):
    page = visit("figures/fig14_answers.html")
    code = page.locator("main details.code-fold")
    assert code.count() == 1 and not code.evaluate("e => e.open")
    assert page.locator("main img").first.bounding_box()["y"] < code.bounding_box()["y"]
    links = page.locator("main a[href$='fig14_answers.svg'], main a[href$='fig14_answers.pdf']")
    assert links.count() == 2
    page.locator("summary").click()
    assert "fig_answers(" in code.inner_text()


def test_single_answers_need_no_server(visit):
    "Image, trigger, cleaner and strength are chosen with the keyboard."
    page = visit("answers.html")
    assert len(page.content()) < 1_000_000
    images, answers = page.locator(".answers-images button"), page.locator(".answers-table span")
    shown, rates = page.locator(".answers-table img").nth(1), page.locator(".answers-rates tbody td")
    assert images.count() == 12 and answers.count() == 4 and all(answers.all_inner_texts())
    assert all(" of 20 right, " in t for t in page.locator(".answers-table small").all_inner_texts())
    before = shown.get_attribute("src")
    images.nth(3).focus()
    page.keyboard.press("Enter")
    assert images.nth(3).get_attribute("aria-pressed") == "true"
    name = images.nth(3).locator("img").get_attribute("alt")
    assert before != shown.get_attribute("src") and name in shown.get_attribute("alt")
    before = rates.all_inner_texts()
    page.select_option("select[name=attack]", index=3)
    assert before != rates.all_inner_texts()  # other models
    before = rates.all_inner_texts()
    slider = page.locator("input[name=setting]")
    slider.focus()
    page.keyboard.press("End")
    page.keyboard.press("Home")
    first, after = page.locator(".answers output").inner_text(), rates.all_inner_texts()
    page.keyboard.press("End")
    assert first != page.locator(".answers output").inner_text() and after != rates.all_inner_texts()
    assert before[::2] == rates.all_inner_texts()[::2]  # the backdoored model stays as it is


def test_single_answers_fit_a_phone(visit):
    region = visit("answers.html", viewport=dict(width=390, height=844)).locator(".answers-scroll")
    assert region.evaluate("e => e.scrollWidth - e.clientWidth") <= 0


def test_the_leaderboard_sorts_and_chooses(visit):
    "Without a server; the columns are buttons, so that a keyboard can sort, too."
    page = visit("leaderboard.html")

    heads = page.locator(".board th").all_inner_texts()

    def texts(head):
        return page.locator(f".board tbody td:nth-child({heads.index(head) + 1})").all_inner_texts()

    def numbers(head):
        return [float(t) for t in texts(head) if t]

    ranks = numbers("rank")
    assert len(ranks) >= 5 and ranks == sorted(ranks)
    sorts = page.locator(".board th", has_text="CA, %")
    sorts.locator("button").focus()
    page.keyboard.press("Enter")
    assert numbers("CA, %") == sorted(numbers("CA, %"))
    assert sorts.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert numbers("CA, %") == sorted(numbers("CA, %"), reverse=True)
    page.select_option(".board select[name=attack]", "sig")
    assert set(texts("worst attack")) == {"SIG"}
    assert numbers("rank") == sorted(numbers("rank"))
    shown = [h.is_visible() for h in page.locator(".board th").all()]
    assert shown == [any(texts(h)) for h in heads], "a column without a value for the choice is not shown"


def test_dark_if_the_reader_prefers_it(visit):
    def grey(scheme):
        colour = visit("index.html", color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    assert grey("light") > 200 and grey("dark") < 80


def with_builder(code):
    "Python that imports the builder without leaving bytecode behind."
    return (
        f"import sys; sys.dont_write_bytecode = True; sys.path.insert(0, {str(BUILDER.parent)!r})\nimport docs\n{code}"
    )


def test_a_missing_tool_is_one_sentence(tmp_path):
    code = (
        "docs.find_spec = lambda m: None if m == 'smalldocs' else True\n"
        f"sys.argv = ['docs', '--out', {str(tmp_path / 'x')!r}, '--renderer', 'smalldocs']\n"
        "docs.main()"
    )
    done = run_python("-c", with_builder(code))
    expected = "smalldocs is not installed, and the site is built with it: pip install -e '.[dev]'"
    assert (done.returncode, done.stderr.strip()) == (1, expected)


def test_a_picture_without_a_text_ends_the_build(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "proc").mkdir()
    page = '<img src="x.png" alt=" "><script src="https://cdn.example/x.js"></script>'
    for f, text in (("a.html", page), ("search.json", "[]"), ("sitemap.xml", "")):
        (tmp_path / "site" / f).write_text(text)
    code = "from pathlib import Path\ndocs.finish(Path('site'), Path('proc'), 'https://here')"
    done = run_python("-c", with_builder(code), cwd=tmp_path)
    assert done.returncode == 1
    assert "a.html shows the picture x.png without" in done.stderr
    assert "a.html loads https://cdn.example/x.js from another host" in done.stderr
