"""Lets `python -m pytest` run the notebooks' own tests too, through nbdev: one test per notebook.

It collects what `nbdev_test` would run: notebooks under nbs/ that are not hidden and whose first cell does not say
`skip_exec: true`.
"""

import json
import os
import re
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from forks import FORKS
from outputs import stale

ROOT = Path(__file__).resolve().parent
SECONDS = 900  # the slowest notebook takes about a minute on an idle core; one that takes longer than this hangs
SKIP = re.compile(r"^(?:- )?skip_exec:\s*(?:true|t|yes|y|on|1)\s*$", re.I | re.M)
# nbdev's own runner with the flags that it skips; in a process for each notebook, since they set seeds and styles. It
# writes what each cell kept and what its code gave
RUNNER = """
import json, sys
from pathlib import Path
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.test import test_nb
cfg, run, outputs = get_config(), CaptureShell.cell, []
def cell(self, cell, *args, **kwargs):
    kept, cell.outputs = cell.get("outputs", []), []
    run(self, cell, *args, **kwargs)
    outputs.append([cell.idx_, kept, cell.outputs])
CaptureShell.cell = cell
ok, _ = test_nb(Path(sys.argv[1]), skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path)
Path(sys.argv[2]).write_text(json.dumps(outputs), encoding="utf-8")
sys.exit(not ok)
"""


def run(path: Path) -> tuple[int, str, list]:  # exit code, what it printed, cells: index, kept and new outputs
    "Test a notebook. Raises `NotebookFailure` if it took too long."
    late = ""
    with tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile() as outputs:
        command = [*FORKS.python(os.environ), "-c", RUNNER, path, outputs.name]
        pipes = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = subprocess.run(command, cwd=path.parent, timeout=SECONDS, **pipes).returncode
        except subprocess.TimeoutExpired:
            late = f"it did not end within {SECONDS} s"
        log.seek(0)
        output = log.read().decode(errors="replace").strip()
        cells = json.loads(outputs.read() or "[]")
    if late:
        raise NotebookFailure(f"{output}\n{late}".strip())
    return code, output, cells


def pytest_configure(config):
    "One thread for each of the processes that test; and a sentence if the development tools are missing."
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONUTF8"] = "1"
    FORKS.expect(os.environ)
    if find_spec("nbdev") is None:
        raise pytest.UsageError("nbdev is not installed, and it runs the notebooks' tests: pip install -e '.[dev]'")


def pytest_unconfigure(config):
    FORKS.stop()


def pytest_collect_file(file_path, parent):
    "Collect the notebooks that nbdev would test."
    if file_path.suffix != ".ipynb" or ROOT / "nbs" not in file_path.parents:
        return None
    if any(part[0] in "_." for part in file_path.relative_to(ROOT).parts):
        return None
    if (file_path.parent / ".notest").exists():
        return None
    return NotebookFile.from_parent(parent, path=file_path)


class NotebookFile(pytest.File):
    "A notebook; it holds one test, or none if its first cell says `skip_exec: true`."

    def collect(self):
        cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        if cells and SKIP.search("".join(cells[0]["source"])):
            return
        yield NotebookTest.from_parent(self, name="nbdev_test")


class NotebookFailure(Exception):
    "The output of a failing notebook."


class NotebookTest(pytest.Item):
    "Runs a notebook from top to bottom as `nbdev_test` does."

    def runtest(self):
        code, output, cells = run(self.path)
        if code:
            raise NotebookFailure(output or f"its process ended with exit code {code}")
        compared, exact = os.environ.get("PARNB_STALE_TESTS") == "1", self.path.name == "index.ipynb"  # the README
        if compared and (old := [i for i, kept, made in cells if stale(kept, made, exact)]):
            raise NotebookFailure(f"cells {old} keep other outputs than their code gives: execute it and commit")

    def repr_failure(self, excinfo):
        if not isinstance(excinfo.value, NotebookFailure):
            return super().repr_failure(excinfo)
        text = str(excinfo.value)  # the last line comes first: pytest's short summary shows the first
        return f"{text.splitlines()[-1]}\nin {self.path.relative_to(ROOT).as_posix()}:\n\n{text}"

    def reportinfo(self):
        return self.path, None, f"{self.path.name}: its own tests"
