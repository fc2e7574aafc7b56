"What must hold of the project as a whole: packaging, form of notebooks and modules, order of the rooms, tracked files."

import ast
import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import lru_cache
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import nbformat
import papermill
import pytest
import rattler
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from scripts import load_script

from parnb.training.pretraining import Pretraining

ROOT = Path(__file__).resolve().parents[1]
NBS, PACKAGE = ROOT / "nbs", ROOT / "parnb"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not any(part[0] in "_." for part in p.relative_to(NBS).parts))
MODULE_NOTEBOOKS = [p for p in NOTEBOOKS if NBS / "api" in p.parents]
RUN_FOLDERS = (NBS, NBS / "figures", NBS / "tables", NBS / "tutorials")
RUNS = [p for p in NOTEBOOKS if p.parent in RUN_FOLDERS and p.name != "index.ipynb"]
RUNS = [p for p in RUNS if '"cell_type": "code"' in p.read_text(encoding="utf-8")]  # a page of text runs nothing
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("_modidx.py", "__init__.py"))
SCRIPTS = [p for folder in ("tests", "benchmarks", ".ci") for p in (ROOT / folder).rglob("*.py")]
SCRIPTS += [ROOT / "setup.py", ROOT / "conftest.py"]

# A module imports from rooms above its own; within a room from notebooks whose `- order: N` is lower.
ROOMS = ["core", "lazy", "progress", "scales", "registry", "models", "data", "evaluation", "training", "synthetic"]
ROOMS += ["attacks", "cleaners", "detectors", "study", "show", "cli"]
METHOD_ROOMS = {"attacks", "cleaners", "detectors"}

MAX_FILE_BYTES = 12_000_000
MAX_PICTURE_BYTES = 100_000
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 450
MIN_SHOWN = 0.80
MACHINE_PATH = re.compile(r"(?<![\w.~})])/(?:work|root|home|Users|tmp|private|scratch|mnt|opt)/[\w.-]+")


def name(path):
    return path.relative_to(ROOT).as_posix()


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=name)


@lru_cache(maxsize=None)
def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code(path):
    return [c for c in read(path)["cells"] if c["cell_type"] == "code"]


def has_flag(cell, *flags):
    "Whether a code cell starts with one of the nbdev directives `#| flag`."
    return any(re.search(rf"^#\|\s*{flag}\b", source(cell), re.M) for flag in flags)


@lru_cache(maxsize=None)
def code_cells(path):
    "(id, syntax tree) of each code cell; IPython's own syntax is translated to Python."
    to_python = TransformerManager().transform_cell
    return [(c.get("id", "?"), ast.parse(to_python(source(c)))) for c in code(path)]


@lru_cache(maxsize=None)
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def settings():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def requirements(key):
    return shlex.split(settings()[key])


def tracked():
    "Files that are committed or would be."
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [p for f in listed.stdout.split("\0") if f and (p := ROOT / f).is_file()]


def imports(tree):
    "Every import below `tree`, as (module, names); a relative import keeps its dots."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, ()) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), tuple(a.name for a in node.names)


# Packaging


def test_environment_agrees_with_settings():
    env = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert set(env) <= {"name", "channels", "dependencies", "variables"} and env["name"] == settings()["lib_name"]
    conda = [d for d in env["dependencies"] if isinstance(d, str)]
    pips = [d for d in env["dependencies"] if not isinstance(d, str)]
    specs = {m.name.normalized: m for m in map(rattler.MatchSpec, conda)}
    for dep in conda:  # the parser accepts spaces in names
        assert re.match(r"[a-z0-9_.-]+([=<>!~]\S+)?$", dep), f"{dep!r} is not a conda requirement"
    assert {"python", "pip"} <= set(specs) and specs["python"].version.startswith(settings()["min_python"])
    assert len(pips) == 1 and list(pips[0]) == ["pip"]
    listed = pips[0]["pip"]
    assert listed.count("-e .") == 1
    wanted = requirements("requirements") + requirements("dev_requirements")
    assert sorted(str(Requirement(r)) for r in listed if r != "-e .") == sorted(str(Requirement(r)) for r in wanted)


def test_the_lock_satisfies_settings():
    lock = load_script(ROOT / ".ci" / "lock.py")
    locked = lock.read_lock()
    assert not lock.problems(locked)
    assert len(locked) > 100 and all(str(Version(v)) == v and not Version(v).local for v in locked.values())
    text = lock.LOCK.read_text(encoding="utf-8")
    packages = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in packages), "one `name==version` a line, no paths"
    assert [line.split("==")[0] for line in packages] == sorted(locked) and "://" not in text


def test_runtime_needs_no_nbdev():
    needed = {Requirement(r).name.lower() for r in requirements("requirements")}
    assert not needed & {"nbdev", "fastcore", "execnb", "ghapi", "fastprogress", "pytest", "ruff"}
    assert "jupyterlab" in needed, "after the first command of the README, `jupyter lab` opens the notebooks"


@each(RUNS)
def test_run_notebooks_import_no_nbdev(path):
    "They are part of the wheel, which is installed without the packages of development."
    roots = {module.split(".")[0] for _, tree in code_cells(path) for module, _ in imports(tree)}
    assert roots and not roots & {"nbdev", "fastcore", "execnb", "pytest"}


@each([p for p in SCRIPTS if p.parent.name == "benchmarks"])
def test_what_a_benchmark_imports_exists(path):
    for module, names in imports(parse(path)):
        if module.split(".")[0] == "parnb":
            found = import_module(module)
            missing = [n for n in names if not hasattr(found, n) and find_spec(f"{module}.{n}") is None]
            assert not missing, f"{module} has no {missing[0]}"


@each(MODULES)
def test_modules_import_no_nbdev(path):
    roots = {module.split(".")[0] for module, _ in imports(parse(path))}
    assert not roots & {"nbdev", "fastcore", "execnb"}
    assert not roots & {"open_clip", "torchvision"}, "import them from parnb.lazy: they take seconds"


def test_modules_import_what_is_required():
    "Each third-party package that a module imports is a requirement, not just a dependency of one."
    needed = {canonicalize_name(Requirement(r).name) for r in requirements("requirements")}
    provided_by = packages_distributions()
    missing = set()
    for path in MODULES:
        for module, _ in imports(parse(path)):
            root = module.split(".")[0]
            if not root or root == "parnb" or root in sys.stdlib_module_names:
                continue
            if not {canonicalize_name(d) for d in provided_by.get(root, [])} & needed:
                missing.add(f"{name(path)} imports {root}")
    assert not missing


@pytest.mark.parametrize("module", ["cli.main", "core", "lazy", "progress", "scales", "registry"])
def test_the_command_line_starts_light(module):
    heavy = ["nbdev", "fastcore", "execnb", "torch", "open_clip", "matplotlib", "papermill"]
    command = f"import sys, parnb.{module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


# The form of the notebooks


@each(NOTEBOOKS)
def test_notebook_is_clean(path):
    nb = read(path)
    nbformat.validate(nbformat.reads(path.read_text(encoding="utf-8"), as_version=4))
    ids = [c.get("id") for c in nb["cells"]]
    assert all(ids) and len(set(ids)) == len(ids), "each cell needs its own id"
    assert not {"widgets", "papermill"} & set(nb["metadata"]), "it keeps widget state or a run: nbdev_clean"
    for c in code(path):
        where = f"cell {c['id']}"
        assert c["execution_count"] is None, f"{where} has an execution count: nbdev_clean"
        for out in c["outputs"]:
            data = out.get("data", {})
            assert out["output_type"] != "error", f"{where} holds a traceback"
            assert out.get("execution_count") is None, f"an output of {where} has a count: nbdev_clean"
            assert not any("widget" in kind for kind in data), f"{where} keeps a widget: clear its output"
            size = len(data.get("image/png", "")) * 3 / 4
            assert size <= MAX_PICTURE_BYTES, f"the picture of {where} is over 100 kB: python .ci/pictures.py"


@each(RUNS)
def test_run_notebook_has_one_parameters_cell(path):
    cells = read(path)["cells"]
    assert re.search(r"^- skip_exec: true$", source(cells[0]), re.M), "its first cell says '- skip_exec: true'"
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, f"{len(tagged)} cells are tagged parameters"
    body = ast.parse(source(tagged[0])).body
    for node in body:
        assert isinstance(node, ast.AnnAssign) and node.value is not None, f"not `name: type = …`: {ast.unparse(node)}"
    names = {node.target.id for node in body}
    assert "smoke" in names, "each run notebook has a smallest form, `smoke: bool = False`"
    assert set(papermill.inspect_notebook(str(path))) == names, "papermill reads other names: write one on each line"


def test_an_unfinished_pretraining_is_named_by_all_of_its_settings():
    "Else it would be continued under others."
    lines = [line for c in code(NBS / "00_pretrain_clip.ipynb") for line in source(c).splitlines()]
    (key,) = [ast.parse(line) for line in lines if line.startswith("key = ")]
    used = {node.id for node in ast.walk(key) if isinstance(node, ast.Name)}
    assert {"model_name", "recipe", "settings", "data", "count", "seed"} <= used
    (passes,) = [ast.parse(line) for line in lines if line.startswith("passes = ")]
    assert {k.arg for k in ast.walk(passes) if isinstance(k, ast.keyword)} == {*Pretraining.model_fields}


@each(RUNS)
def test_run_notebook_exports_nothing(path):
    assert not [c["id"] for c in code(path) if has_flag(c, "default_exp", "export")]


@each(NOTEBOOKS)
def test_imports_are_in_cells_of_their_own(path):
    for cell, tree in code_cells(path):
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body}
        assert len(kinds) < 2, f"cell {cell} mixes imports with other code"


# The form of the code. `ruff format --check` and `ruff check` (line length, complexity) run in .ci/run.


@each(MODULES)
def test_modules_and_functions_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_MODULE_LINES, f"{lines} lines; {MAX_MODULE_LINES} at most"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {n.name: n.end_lineno - n.lineno + 1 for n in ast.walk(parse(path)) if isinstance(n, kinds)}
    long = {n: count for n, count in lengths.items() if count > MAX_FUNCTION_LINES}
    assert not long, f"over {MAX_FUNCTION_LINES} lines: {long}"


def is_example(cell):
    "Whether a code cell shows something to a reader: visible, not exported, and more than imports or `show_doc`."
    if has_flag(cell, "export", "exporti", "exports", "hide", "default_exp", "include: false", "echo: false"):
        return False
    tree = ast.parse(TransformerManager().transform_cell(source(cell)))
    body = [n for n in tree.body if not isinstance(n, (ast.Import, ast.ImportFrom))]
    return any("show_doc" not in ast.unparse(n) for n in body)


def shown_cells(path):
    "(cell id, whether one of the next two code cells is an example) of each exported cell that defines something."
    cells = code(path)
    for i, cell in enumerate(cells):
        if not has_flag(cell, "export", "exporti", "exports"):
            continue
        tree = ast.parse(TransformerManager().transform_cell(source(cell)))
        if any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in tree.body):
            yield cell["id"], any(is_example(c) for c in cells[i + 1 : i + 3])


def test_exported_cells_are_shown(record_property):
    found = {path: [shown for _, shown in shown_cells(path)] for path in MODULE_NOTEBOOKS}
    total, shown = sum(map(len, found.values())), sum(map(sum, found.values()))
    record_property("shown", f"{shown} of {total}")
    print(f"{shown} of {total} exported cells are shown within two cells: {shown / total:.0%}")
    missing = {name(p): len(s) - sum(s) for p, s in found.items() if len(s) > sum(s)}
    assert shown >= MIN_SHOWN * total, f"{shown} of {total} exported cells are shown; hidden: {missing}"


# The order of the rooms


def position(module):
    "(room, order within the room) of `cleaners.par`."
    return ROOMS.index(module.split(".")[0]), orders().get(module, -1)


@lru_cache(maxsize=None)
def exported():
    "Module -> its notebook, both by name: `cleaners.par` is exported from nbs/api/cleaners/par.ipynb."
    found = {}
    for path in MODULE_NOTEBOOKS:
        names = [m for c in code(path) for m in re.findall(r"^#\|\s*default_exp\s+(\S+)", source(c), re.M)]
        module = ".".join(path.relative_to(NBS / "api").with_suffix("").parts)
        assert names == [module], f"{name(path)} exports {names}, expected is {module}"
        found[module] = path
    return found


@lru_cache(maxsize=None)
def orders():
    "Module -> the number in `- order: N` of its notebook."
    found = {}
    for module, path in exported().items():
        order = re.search(r"^- order: (\d+)$", source(read(path)["cells"][0]), re.M)
        assert order, f"the first cell of {name(path)} has no `- order: N`"
        found[module] = int(order[1])
    return found


def own_imports(trees):
    "The modules of parnb that are imported, as `cleaners.par`."
    for tree in trees:
        for module, names in imports(tree):
            top, _, rest = module.partition(".")
            if top != "parnb":
                continue
            for n in names or ("",):
                full = ".".join(filter(None, (rest, n)))
                if full in exported():
                    yield full
                elif rest:
                    yield rest


def own(path):
    return set(own_imports(tree for _, tree in code_cells(path)))


def test_every_module_has_a_notebook_and_a_room():
    there = {".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in MODULES}
    assert there == set(exported()), f"without notebook or module: {sorted(there ^ set(exported()))}"
    assert {m.split(".")[0] for m in there} <= set(ROOMS)
    inits = {name(p.parent / "__init__.py") for p in MODULES if not (p.parent / "__init__.py").exists()}
    assert not inits, f"missing: {inits}"


@each(MODULE_NOTEBOOKS)
def test_module_imports_only_from_above(path):
    mine = ".".join(path.relative_to(NBS / "api").with_suffix("").parts)
    used = own(path) - {mine}  # a worker process imports its own module
    unknown = used - set(exported())
    assert not unknown, f"no notebook exports {sorted(unknown)}"
    wrong = sorted(m for m in used if position(m) >= position(mine))
    assert not wrong, f"{mine} imports {wrong}, which come later or have the same `- order`"


@each([p for p in NOTEBOOKS if p not in MODULE_NOTEBOOKS])
def test_notebook_imports_what_is_exported(path):
    assert not own(path) - set(exported()), "imports from a module that no notebook exports"


def test_no_star_imports():
    trees = [(name(p), tree) for p in NOTEBOOKS for _, tree in code_cells(p)]
    trees += [(name(p), parse(p)) for p in SCRIPTS + MODULES]
    stars = {
        f
        for f, tree in trees
        for module, names in imports(tree)
        if "*" in names and module.split(".")[0] in ("parnb", "")
    }
    assert not stars, f"import * of parnb in {sorted(stars)}"


# Nothing outside a method's module knows the method


@lru_cache(maxsize=None)
def methods():
    "Name -> module of each method that parnb registers."
    from parnb import registry

    found = {}
    for kind in (registry.attacks, registry.cleaners, registry.detectors):
        for method_name, method in kind().items():
            if method.cls.__module__.startswith("parnb."):
                found[method_name] = method.cls.__module__.removeprefix("parnb.")
    return found


def literals(tree):
    "(line, text) of each string of a module that is not a docstring."
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(n.body[0].value)
        for n in ast.walk(tree)
        if isinstance(n, documented) and n.body and isinstance(n.body[0], ast.Expr)
    }
    for n in ast.walk(tree):
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs:
            yield n.lineno, n.value


def test_no_module_names_a_method():
    assert len(methods()) >= 13
    found = []
    for path in MODULES:
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for line, text in literals(parse(path)):
            words = [] if " " in text else re.split(r"[^\w-]+", text)  # of a sentence, none
            named = {m for m in methods() if any(w == m or w.startswith(f"{m}-") for w in words)}
            named = {m for m in named if methods()[m] != module}
            found += [f"{name(path)}:{line} names {sorted(named)}: {text!r}"] if named else []
    assert not found, "\n".join(["only a method's own module may name it:", *found])


def test_no_module_imports_a_method():
    own_modules = set(methods().values())
    found = []
    for path in MODULE_NOTEBOOKS:
        mine = ".".join(path.relative_to(NBS / "api").with_suffix("").parts)
        if mine.split(".")[0] in METHOD_ROOMS:
            continue
        exported_trees = (
            tree for cell, (_, tree) in zip(code(path), code_cells(path)) if has_flag(cell, "export", "exporti")
        )
        used = set(own_imports(exported_trees)) & own_modules
        found += [f"{name(path)} imports {sorted(used)}"] if used else []
    assert not found, "\n".join(["a method is looked up in the registry:", *found])


# The site and the tree


def sidebar():
    "Every notebook of the sidebar in its order; a pattern lists its notebooks by `- order: N`, then by name."

    def key(path):
        order = re.search(r"^- order: (\d+)$", source(read(path)["cells"][0]), re.M)
        return int(order[1]) if order else 0, path.name

    def files(entries):
        for e in [entries] if isinstance(entries, str) else entries:
            if isinstance(e, dict):
                yield from files(e["contents"])
            elif "*" in e:
                yield from (p.relative_to(NBS).as_posix() for p in sorted(NBS.glob(e), key=key))
            else:
                yield e

    site = yaml.safe_load((NBS / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    return list(files(site["sidebar"]["contents"]))


def test_sidebar_names_every_notebook():
    there, listed = {p.relative_to(NBS).as_posix() for p in NOTEBOOKS}, sidebar()
    differ = sorted(there ^ set(listed))
    assert len(listed) == len(set(listed)) and not differ, f"nbs/_quarto.yml: {differ}"


def test_sidebar_lists_modules_in_order():
    modules = [f.removeprefix("api/").removesuffix(".ipynb").replace("/", ".") for f in sidebar() if f[:4] == "api/"]
    assert modules == sorted(modules, key=position)


def test_no_file_names_a_machine_path():
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data[:8000]:
            continue
        found += [f"{name(path)}: {m[0]}" for m in MACHINE_PATH.finditer(data.decode("utf-8", "replace"))]
    assert not found


def test_no_file_is_large():
    assert not [f"{name(p)}: {size / 1e6:.1f} MB" for p in tracked() if (size := p.stat().st_size) > MAX_FILE_BYTES]


# First contact


def test_citation_and_changelog_name_the_version():
    version = settings()["version"]
    assert str(Version(version)) == version, "the version follows PEP 440 in its normal form"
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(cff)
    assert {"type", "title", "authors"} <= set(cff["preferred-citation"])
    assert cff["version"] == version and cff["repository-code"] == settings()["git_url"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = [Version(v) for v in re.findall(r"^## (\S+?),? ", changelog, re.M)]
    assert released[0] == Version(version) and released == sorted(released, reverse=True)
    assert f'__version__ = "{version}"' in (PACKAGE / "__init__.py").read_text(encoding="utf-8")


def test_the_readme_links_to_the_main_job():
    assert "](nbs/03_par_clean.ipynb)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    size = (ROOT / "README.md").stat().st_size
    assert size <= 9_000, f"{size} bytes; move details to the site"


def test_commands_of_the_readme_are_released():
    from parnb.study.results import results
    from parnb.study.runs import make_run

    released = results("tiny", "released").index
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"parnb measure --attack (\w+) --method (\w+)", readme)
    assert commands and {k[:8] for k in released} >= {*re.findall(r"parnb explain (\w{8})\b", readme)}
    assert not [c for c in commands if make_run(attack=c[0], method=c[1]).key not in released]


def test_links_of_the_documents_lead_somewhere():
    for doc in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        text = re.sub(r"^```.*?^```", "", (ROOT / doc).read_text(encoding="utf-8"), flags=re.M | re.S)
        links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text)
        assert not [link for link in links if not (ROOT / link).exists()], doc


def test_a_notebook_that_does_not_end_is_told_why(tmp_path):
    runner = load_script(ROOT / "conftest.py")
    runner.RUNNER, runner.SECONDS = "import time; time.sleep(60)", 0.2
    with pytest.raises(runner.NotebookFailure, match="did not end within 0.2 s"):
        runner.run(tmp_path / "a.ipynb")


@pytest.mark.parametrize("code, ended", [("import sys; sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_a_notebook_fails_as_its_process_does(tmp_path, code, ended):
    runner = load_script(ROOT / "conftest.py")
    runner.RUNNER = f"print('so far', flush=True); {code}"
    assert runner.run(tmp_path / "a.ipynb") == (ended, "so far", [])


def test_a_stale_output_is_found(tmp_path):
    "With PARNB_STALE_TESTS=1 a notebook fails that shows other words; numbers and names of artifacts may differ."
    runner = load_script(ROOT / "conftest.py")
    shown = [{"output_type": "stream", "name": "stdout", "text": "tiny-rn: 0.25 of 12 in poisoned-0123456789ab"}]
    made = [{"output_type": "stream", "name": "stdout", "text": "tiny-rn: -3e-5 of 8 in poisoned-ba9876543210\n"}]
    html = {"output_type": "display_data", "data": {"text/html": "<b>3</b> rows", "text/plain": "another form"}}
    picture = {"output_type": "display_data", "data": {"image/png": "…", "text/plain": "<Figure size 3x4>"}}
    assert runner.stale([], shown) and runner.stale(shown, []) and runner.stale(shown, [picture])
    assert runner.stale(shown, [shown[0] | {"text": "tiny-vit: 0.25 of 12 by hand"}])
    assert not runner.stale([], [shown[0] | {"name": "stderr"}])  # a warning of another version of a library
    assert not runner.stale(shown, made) and not runner.stale([html, picture], [html, picture])
    notebook = tmp_path / "a.ipynb"
    cells = [nbformat.v4.new_code_cell("print('four')", outputs=[]), nbformat.v4.new_markdown_cell("four")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    code, text, found = runner.run(notebook)
    assert (code, text, len(found)) == (0, "", 1)
    _, kept, given = found[0]
    assert given[0]["text"] == ["four\n"] and runner.stale(kept, given)


def test_a_stale_table_or_figure_is_found(tmp_path):
    "`.ci/stale.py` compares tables and figures from released results with those that are committed."
    executed, figures = tmp_path / "executed", tmp_path / "figures"
    shutil.copytree(ROOT / "nbs" / "tables", executed)
    for page in ("findings", "leaderboard"):
        shutil.copy(ROOT / "nbs" / f"{page}.ipynb", executed)
    figures.mkdir()
    for file in (f for kind in ("tab*.*", "fig*.json", "fig*.svg") for f in (ROOT / "figures").glob(kind)):
        shutil.copy(file, figures / f"{file.stem}_smoke{file.suffix}")
    kept, made = ROOT / "figures" / "tab05_tau.csv", figures / "tab05_tau_smoke.csv"
    caption, *drawn = (
        figures / name for name in ("tab05_tau_smoke.md", "fig9_lambda_smoke.json", "fig9_lambda_smoke.svg")
    )
    texts = [f.read_text(encoding="utf-8") for f in drawn]

    def found():
        command = [sys.executable, ROOT / ".ci" / "stale.py", executed, figures]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout

    assert found() == (0, "no table or figure is stale\n")
    drawn[1].write_text(texts[1].replace("M ", "M 1", 1), encoding="utf-8")
    assert "figures/fig9_lambda differs" in found()[1]
    drawn[0].write_text(texts[0].replace('"matplotlib": "', '"matplotlib": "0.'), encoding="utf-8")
    assert found()[0] == 0  # another version may draw otherwise
    drawn[0].write_text(texts[0].replace('"not_run": 0', '"not_run": 1'), encoding="utf-8")
    assert "figures/fig9_lambda differs" in found()[1]
    made.write_text(kept.read_text(encoding="utf-8").replace("0.9", "0.8"), encoding="utf-8")
    notebook = executed / "tab05_tau.ipynb"
    notebook.write_text(notebook.read_text(encoding="utf-8").replace("<td>94", "<td>93"), encoding="utf-8")
    code, text = found()
    assert code == 1 and "figures/tab05_tau.csv differs" in text and "nbs/tables/tab05_tau.ipynb displays" in text
    assert "tab05_tau.md" not in text
    caption.write_text(caption.read_text(encoding="utf-8").replace("runs completed", "runs"), encoding="utf-8")
    assert "figures/tab05_tau.md differs" in found()[1]
    caption.unlink()
    made.unlink()
    code, text = found()
    assert code == 1 and "figures/tab05_tau.csv is written by no notebook" in text


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.stem)
def test_a_workflow_has_no_more_rights_than_it_needs(path):
    "A job that may publish runs no code of the repository, and no checkout leaves a token in the folder."
    flow = yaml.safe_load(path.read_text())
    assert flow["permissions"] == {"contents": "read"}
    for name, job in flow["jobs"].items():
        used = [s["uses"].split("@")[0] for s in job["steps"] if "uses" in s]
        checkouts = [s.get("with", {}) for s in job["steps"] if s.get("uses", "").startswith("actions/checkout@")]
        assert all(w.get("persist-credentials") is False for w in checkouts), f"{name} keeps a token"
        if "id-token" in job.get("permissions", {}):
            assert not checkouts and not [s for s in job["steps"] if "run" in s] and "actions/setup-python" not in used
