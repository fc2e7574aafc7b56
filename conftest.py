"""Lets `python -m pytest` run the notebooks' own tests too, through nbdev: one test per notebook.

It collects what `nbdev_test` would run: notebooks under nbs/ that are not hidden and whose first cell does not say
`skip_exec: true`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
SECONDS = 900  # the slowest notebook takes about a minute on an idle core; one that takes longer than this hangs
SKIP = re.compile(r"^(?:- )?skip_exec:\s*(?:true|t|yes|y|on|1)\s*$", re.I | re.M)
# nbdev's own runner with the flags that it skips, in a process for each notebook, since they set seeds, threads and
# styles. Importing torch and open_clip takes longer than most notebooks, so it is done once, and the process is forked.
SERVER = """
import json, os, sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
if sys.platform == "linux":
    import matplotlib.pyplot, open_clip, pandas
def run(path, log):
    os.chdir(path.parent)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
    cfg, ok = get_config(), False
    try:
        ok, _ = test_nb(path, skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(not ok)
for line in sys.stdin:
    path, log = map(Path, json.loads(line))
    pid = os.fork()
    if pid == 0:
        run(path, log)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Server:
    "The process that is forked for each notebook."

    process = None

    def run(self, path: Path) -> tuple[int, str]:
        "Exit code and output of a notebook's test. Raises `NotebookFailure` if it took too long, or the process died."
        if self.process is None or self.process.poll() is not None:
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
            env = os.environ | {"PYTHONUTF8": "1"}
            self.process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT / "nbs", env=env, **pipes)
        with tempfile.NamedTemporaryFile() as log:
            late = threading.Event()
            timer = threading.Timer(SECONDS, lambda: (late.set(), self.stop()))
            timer.start()
            try:
                self.process.stdin.write(json.dumps([str(path), log.name]) + "\n")
                self.process.stdin.flush()
                answer = self.process.stdout.readline()
            finally:
                timer.cancel()
            output = log.read().decode(errors="replace").strip()
            if answer:
                return int(answer), output
            ended = f"the process that runs notebooks ended with exit code {self.process.wait()}"
            why = f"it did not end within {SECONDS} s" if late.is_set() else ended
            raise NotebookFailure(f"{output}\n{why}".strip())

    def stop(self):
        "End the process and what it started."
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


SERVER_OF_THIS_PROCESS = Server()


def pytest_configure(config):
    "One thread for each of the processes that test; and a sentence if the development tools are missing."
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if find_spec("nbdev") is None:
        raise pytest.UsageError("nbdev is not installed, and it runs the notebooks' tests: pip install -e '.[dev]'")


def pytest_unconfigure(config):
    SERVER_OF_THIS_PROCESS.stop()


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
        code, output = SERVER_OF_THIS_PROCESS.run(self.path)
        if code:
            raise NotebookFailure(output or f"its process ended with exit code {code}")

    def repr_failure(self, excinfo):
        if not isinstance(excinfo.value, NotebookFailure):
            return super().repr_failure(excinfo)
        text = str(excinfo.value)  # the last line comes first: pytest's short summary shows the first
        return f"{text.splitlines()[-1]}\nin {self.path.relative_to(ROOT).as_posix()}:\n\n{text}"

    def reportinfo(self):
        return self.path, None, f"{self.path.name}: its own tests"
