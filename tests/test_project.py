"What must hold of the project as a whole: packaging, the notebooks' form, the order of the modules, what is tracked."
import ast
import configparser
import json
import re
import shlex
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import nbformat
import papermill
import pytest
import rattler
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if not any(part[0] in '_.' for part in p.relative_to(NBS).parts))
MODULES = [p for p in NOTEBOOKS if p.parent == NBS/'api']
RUNS = [p for p in NOTEBOOKS if p.parent in (NBS, NBS/'figures', NBS/'tables', NBS/'tutorials') and p.name != 'index.ipynb']
MAX_BYTES = 12_000_000
MACHINE_PATH = re.compile(r'(?<![\w.~})])/(?:work|root|home|Users|tmp|private|scratch|mnt|opt)/[\w.-]+')


def name(path): return path.relative_to(ROOT).as_posix()

def each(paths): return pytest.mark.parametrize('path', paths, ids=name)

@lru_cache(maxsize=None)
def read(path): return json.loads(path.read_text(encoding='utf-8'))

def source(cell): return ''.join(cell['source'])

def code(path): return [c for c in read(path)['cells'] if c['cell_type'] == 'code']

@lru_cache(maxsize=None)
def code_cells(path):
    "(id, syntax tree) of each code cell, IPython's own syntax made Python."
    to_python = TransformerManager().transform_cell
    return [(c.get('id', '?'), ast.parse(to_python(source(c)))) for c in code(path)]

def settings():
    config = configparser.ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']

def requirements(key): return shlex.split(settings()[key])

def tracked():
    "Files that are committed or would be."
    command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git checkout')
    return [p for f in listed.stdout.split('\0') if f and (p := ROOT/f).is_file()]

def imports(tree):
    "Every import below `tree`, as (module, names); a relative import keeps its dots."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from ((a.name, ()) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield '.'*node.level+(node.module or ''), tuple(a.name for a in node.names)


# Packaging

def test_environment_agrees_with_settings():
    env = yaml.safe_load((ROOT/'environment.yml').read_text(encoding='utf-8'))
    assert set(env) <= {'name', 'channels', 'dependencies', 'variables'} and env['name'] == settings()['lib_name']
    conda = [d for d in env['dependencies'] if isinstance(d, str)]
    pips = [d for d in env['dependencies'] if not isinstance(d, str)]
    specs = {m.name.normalized: m for m in map(rattler.MatchSpec, conda)}
    for dep in conda:  # the parser lets spaces in names pass
        assert re.match(r'[a-z0-9_.-]+([=<>!~]\S+)?$', dep), f'{dep!r} is no conda requirement'
    assert {'python', 'pip'} <= set(specs) and specs['python'].version.startswith(settings()['min_python'])
    assert len(pips) == 1 and list(pips[0]) == ['pip']
    listed = pips[0]['pip']
    assert listed.count('-e .') == 1
    parse = lambda lines: sorted(str(Requirement(r)) for r in lines)
    wanted = requirements('requirements')+requirements('dev_requirements')
    assert parse(r for r in listed if r != '-e .') == parse(wanted)

def test_runtime_needs_no_nbdev():
    needed = {Requirement(r).name.lower() for r in requirements('requirements')}
    assert not needed & {'nbdev', 'fastcore', 'execnb', 'ghapi', 'fastprogress', 'jupyterlab', 'pytest'}

@each(sorted(p for p in (ROOT/'parnb').glob('*.py') if p.name != '_modidx.py'))
def test_modules_import_no_nbdev(path):
    roots = {module.split('.')[0] for module, _ in imports(ast.parse(path.read_text(encoding='utf-8')))}
    assert not roots & {'nbdev', 'fastcore', 'execnb'}

@pytest.mark.skipif(find_spec('parnb.cli') is None, reason='there is no parnb.cli')
def test_the_command_line_starts_light():
    heavy = ['nbdev', 'fastcore', 'execnb', 'torch', 'open_clip', 'matplotlib', 'papermill']
    code = f'import sys, parnb.cli; print([m for m in {heavy} if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, '[]'), done.stdout+done.stderr


# The form of the notebooks

@each(NOTEBOOKS)
def test_notebook_is_clean(path):
    nb = read(path)
    nbformat.validate(nbformat.reads(path.read_text(encoding='utf-8'), as_version=4))
    ids = [c.get('id') for c in nb['cells']]
    assert all(ids) and len(set(ids)) == len(ids), 'every cell has an id of its own'
    assert not {'widgets', 'papermill'} & set(nb['metadata']), 'it keeps widget state or a run: nbdev_clean'
    for c in code(path):
        assert c['execution_count'] is None, f"cell {c['id']} has an execution count: nbdev_clean"
        for out in c['outputs']:
            assert out['output_type'] != 'error', f"cell {c['id']} holds a traceback"
            assert out.get('execution_count') is None, f"an output of cell {c['id']} has a count: nbdev_clean"
            assert not any('widget' in kind for kind in out.get('data', {})), f"cell {c['id']} keeps a widget, which is nothing without its kernel: clear its output"
            assert len(out.get('data', {}).get('image/png', ''))*3/4 <= 100_000, f"the picture of cell {c['id']} is over 100 kB: python .ci/pictures.py"

@each(RUNS)
def test_run_notebook_has_one_parameters_cell(path):
    cells = read(path)['cells']
    assert re.search(r'^- skip_exec: true$', source(cells[0]), re.M), "its first cell says '- skip_exec: true'"
    tagged = [c for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1, f'{len(tagged)} cells are tagged parameters'
    body = ast.parse(source(tagged[0])).body
    for node in body:
        assert isinstance(node, ast.AnnAssign) and node.value is not None, f'not `name: type = value`: {ast.unparse(node)}'
    names = {node.target.id for node in body}
    assert 'smoke' in names, 'every run notebook has a smallest form, `smoke: bool = False`'
    assert set(papermill.inspect_notebook(str(path))) == names, 'papermill sees others than Python: write one on each line'

@each(RUNS)
def test_run_notebook_exports_nothing(path):
    assert not [c['id'] for c in code(path) if re.search(r'^#\|\s*(default_exp|export)', source(c), re.M)]

@each(NOTEBOOKS)
def test_imports_have_cells_of_their_own(path):
    for cell, tree in code_cells(path):
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body}
        assert len(kinds) < 2, f'cell {cell} mixes imports with other code'


# The order of the modules

def exported():
    "Module -> number of its notebook."
    found = {}
    for path in MODULES:
        names = [m for c in code(path) for m in re.findall(r'^#\|\s*default_exp\s+(\S+)', source(c), re.M)]
        m = re.match(r'(\d\d)_(\w+)\.ipynb$', path.name)
        assert m and len(names) == 1, f'{name(path)} is no NN_noun.ipynb with one default_exp'
        assert names[0] == m[2] and names[0] not in found, f'{name(path)} exports {names[0]}'
        found[names[0]] = int(m[1])
    return found

def own(path):
    "The modules of parnb that a notebook imports."
    for _, tree in code_cells(path):
        for module, names in imports(tree):
            top, _, rest = module.partition('.')
            if top == 'parnb': yield from [rest.split('.')[0]] if rest else names

@each(MODULES)
def test_module_imports_only_lower_numbers(path):
    numbers, mine = exported(), int(path.name[:2])
    used = set(own(path))-{path.stem[3:]}  # itself is fine, within a function: that is how a worker process finds it
    assert used <= set(numbers), f'no notebook exports {sorted(used-set(numbers))}'
    wrong = sorted(m for m in used if numbers[m] >= mine)
    assert not wrong, f'imports {wrong}, of the same or a higher number'

@each([p for p in NOTEBOOKS if p not in MODULES])
def test_notebook_imports_what_is_exported(path):
    assert not set(own(path))-set(exported()), 'imports from a module that no notebook exports'

def test_no_star_imports_of_our_own():
    trees = [(name(p), tree) for p in NOTEBOOKS for _, tree in code_cells(p)]
    scripts = [p for d in ('parnb', 'tests', 'benchmarks') for p in (ROOT/d).rglob('*.py')]
    trees += [(name(p), ast.parse(p.read_text(encoding='utf-8'))) for p in scripts]
    stars = {f for f, tree in trees for module, names in imports(tree)
             if '*' in names and module.split('.')[0] in ('parnb', '')}
    assert not stars, f'import * of parnb in {sorted(stars)}'


# The site and the tree

def test_sidebar_names_every_notebook():
    def files(entries): return [f for e in entries for f in ([e] if isinstance(e, str) else files(e['contents']))]
    site = yaml.safe_load((NBS/'_quarto.yml').read_text(encoding='utf-8'))['website']
    there = {p.relative_to(NBS).as_posix() for p in NOTEBOOKS}
    listed = files(site['sidebar']['contents'])
    assert len(listed) == len(set(listed)) and not (differ := sorted(there ^ set(listed))), f'nbs/_quarto.yml: {differ}'

def test_no_file_names_a_machine_path():
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b'\0' in data[:8000]: continue
        found += [f'{name(path)}: {m[0]}' for m in MACHINE_PATH.finditer(data.decode('utf-8', 'replace'))]
    assert not found

def test_no_file_is_large():
    assert not [f'{name(p)}: {size/1e6:.1f} MB' for p in tracked() if (size := p.stat().st_size) > MAX_BYTES]


# First contact

def test_citation_and_changelog_name_the_version():
    cff = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    assert cff['cff-version'] == '1.2.0' and {'message', 'title', 'authors'} <= set(cff) and {'type', 'title', 'authors'} <= set(cff['preferred-citation'])
    assert cff['version'] == settings()['version'] and cff['repository-code'] == settings()['git_url']
    assert re.search(rf"^## {re.escape(settings()['version'])}\b", (ROOT/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)

def test_every_run_notebook_is_in_the_readme():
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    missing = [name(p) for p in RUNS if f']({name(p)})' not in readme and f']({name(p.parent)})' not in readme]
    assert not missing

def test_commands_of_the_readme_are_on_file():
    from parnb.experiments import make_run, results
    on_file = results('tiny').index
    commands = re.findall(r'`parnb measure --attack (\w+) --method (\w+)`', (ROOT/'README.md').read_text(encoding='utf-8'))
    assert len(commands) == 10
    assert not [c for c in commands if make_run(attack=c[0], method=c[1]).key not in on_file]

def test_links_of_the_documents_lead_somewhere():
    for doc in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md'):
        text = re.sub(r'^```.*?^```', '', (ROOT/doc).read_text(encoding='utf-8'), flags=re.M | re.S)
        assert not [t for t in re.findall(r'\]\((?![a-z]+:|#)([^)#\s]+)', text) if not (ROOT/t).exists()], doc
