"A program that is forked from a process with torch does what it does in a process of its own."

import os
import subprocess
import sys

import pytest
from forks import FORKS, OWN
from processes import PARNB
from waiting import wait_for

SEEN = "import os, sys; print(sys.argv, sys.path[0], __name__, os.getcwd(), os.getenv('PARNB_X'), sys.stdin.read())"
PROGRAMS = [
    ["-c", SEEN, "one", "two"],
    ["-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"],
    ["-c", "raise SystemExit('in words')"],
    ["-c", "import os; os.kill(os.getpid(), 15)"],
    ["-c", "import atexit; atexit.register(print, 'last'); print('first')"],
    ["-m", "json.tool", "--help"],
    ["written.py", "three"],
    [PARNB, "measure", "--tau", "9"],
    [PARNB, "run"],
]


@pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux only")
@pytest.mark.parametrize("program", PROGRAMS, ids=[" ".join(p)[:40] for p in PROGRAMS])
def test_it_is_like_a_real_process(tmp_path, program):
    (tmp_path / "written.py").write_text(SEEN)
    here = os.environ | dict(PARNB_X="a")
    assert (forked := FORKS.python(here)) != [sys.executable]
    how = dict(cwd=tmp_path, env=here, input="given", capture_output=True, text=True)
    one, other = (subprocess.run([*python, *program], **how) for python in (forked, [sys.executable]))
    assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)


def test_an_error_names_itself():
    done = subprocess.run([*FORKS.python(os.environ), "-c", "1 / 0"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_libraries_would_read_another_environment():
    assert FORKS.python(os.environ | dict(CUDA_VISIBLE_DEVICES="1")) == [sys.executable]


def test_libraries_that_a_test_imports_set_no_other_variable():
    "Or commands after that test would be real processes, six seconds slower."
    libraries = "torch, open_clip, joblib, sklearn.manifold, transformers, diffusers, datasets, papermill, submitit"
    code = f"import os; before = {{*os.environ}}; import {libraries}; print(*{{*os.environ}} - before)"
    before = dict(env=FORKS.environment, capture_output=True, text=True, check=True)  # this process has imported some
    new = subprocess.run([sys.executable, "-c", code], **before).stdout.split()
    assert [name for name in new if not name.startswith(OWN)] == []


def test_hashes_and_random_numbers_differ():
    "Or a key that depends on the order of a set would be found again by chance."
    code = "import numpy as np; print(hash('a')); print(np.random.rand())"
    done = [subprocess.run([*FORKS.python(os.environ), "-c", code], capture_output=True, text=True) for _ in range(4)]
    hashes, numbers = zip(*(p.stdout.split() for p in done))
    assert hashes[0] != hashes[1] and len({*numbers}) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="programs are forked on Linux only")
def test_it_ends_with_its_client(tmp_path):
    code = "import os, pathlib, time; pathlib.Path('id').write_text(str(os.getpid())); time.sleep(600)"
    assert (forked := FORKS.python(os.environ)) != [sys.executable]
    p = subprocess.Popen([*forked, "-c", code], cwd=tmp_path)
    pid = wait_for(lambda: (tmp_path / "id").exists() and (tmp_path / "id").read_text(), "the program is at work", p)
    p.kill()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the program has ended")
    p.wait()
