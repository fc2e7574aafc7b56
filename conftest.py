"""Lets `python -m pytest` run the notebooks' own tests too, through nbdev: one item a notebook, so that one summary line counts everything.

Collected is what `nbdev_test` would test: notebooks under nbs/, neither hidden nor with `skip_exec: true` in their first cell.
"""
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
SECONDS = 900  # a notebook that takes longer hangs
SKIP = re.compile(r'^(?:- )?skip_exec:\s*(?:true|t|yes|y|on|1)\s*$', re.I | re.M)
# a process each, since notebooks set seeds, threads and styles; nbdev's own runner, with the flags it skips
RUNNER = """
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
cfg = get_config()
ok, _ = test_nb(Path(sys.argv[1]), skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path)
sys.exit(not ok)
"""


def pytest_configure(config):
    "One sentence instead of a traceback where the development tools are missing."
    if find_spec('nbdev') is None:
        raise pytest.UsageError("nbdev is not installed, and the notebooks are tested through it: pip install -e '.[dev]'")


def pytest_collect_file(file_path, parent):
    "Collect the notebooks that nbdev would test."
    if file_path.suffix != '.ipynb' or ROOT/'nbs' not in file_path.parents: return None
    if any(part[0] in '_.' for part in file_path.relative_to(ROOT).parts): return None
    if (file_path.parent/'.notest').exists(): return None
    return NotebookFile.from_parent(parent, path=file_path)


class NotebookFile(pytest.File):
    "A notebook; it holds one test, or none where its first cell says `skip_exec: true`."

    def collect(self):
        cells = json.loads(self.path.read_text(encoding='utf-8'))['cells']
        if cells and SKIP.search(''.join(cells[0]['source'])): return
        yield NotebookTest.from_parent(self, name='nbdev_test')


class NotebookFailure(Exception):
    "What a failing notebook wrote."


class NotebookTest(pytest.Item):
    "Runs a notebook from top to bottom as `nbdev_test` does."

    def runtest(self):
        command, env = [sys.executable, '-c', RUNNER, str(self.path)], os.environ | {'PYTHONUTF8': '1'}
        pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
        try: done = subprocess.run(command, cwd=self.path.parent, env=env, timeout=SECONDS, **pipes)
        except subprocess.TimeoutExpired: raise NotebookFailure(f'it did not end within {SECONDS} s') from None
        if done.returncode: raise NotebookFailure(done.stdout.strip() or f'its process ended with {done.returncode}')

    def repr_failure(self, excinfo):
        if not isinstance(excinfo.value, NotebookFailure): return super().repr_failure(excinfo)
        said = str(excinfo.value)  # its last line comes first: pytest's short summary shows the first
        return f'{said.splitlines()[-1]}\nin {self.path.relative_to(ROOT).as_posix()}:\n\n{said}'

    def reportinfo(self): return self.path, None, f'{self.path.name}: its own tests'
