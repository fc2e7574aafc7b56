"`parnb reproduce` as a user runs it: processes, failures, interruption, and figures from released results."

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from processes import LONGEST, PARNB, env, fails_with, parnb, python, several, start
from waiting import wait_for

ROOT = Path(__file__).parents[1]
SMOKE = """
import json
from parnb.study.reproduce import Pool
from parnb.study.explain import run_name
from parnb.study.runs import make_run
good = make_run(smoke=True, method="none")
bad = make_run(smoke=True, method="ft", recipe=dict(lr=1e9, warmup=0.0))
failed = Pool({r.key: (r, set()) for r in (bad, good)}, 2, "local", {}).compute()
print(json.dumps(dict(failed=failed, bad=run_name(bad), good=good.key)))
"""
SPREAD = """
import os, time
import parnb.study.reproduce as reproduce
from parnb.study.runs import make_run
def note(run, kinds, sharing):
    assert sharing == 2
    (reproduce.RUNS / os.environ["CUDA_VISIBLE_DEVICES"]).touch()
    while len([f for f in reproduce.RUNS.iterdir() if f.name != "reproduce"]) < 2:  # until both are at work
        time.sleep(0.1)
reproduce.compute_run = note
runs = [make_run(method="none", seed=s) for s in (0, 1)]
assert not reproduce.Pool({r.key: (r, set()) for r in runs}, 4, "local", {}).compute()
"""
KILLED = """
import os, signal
import parnb.study.reproduce as reproduce
from parnb.study.runs import make_run
def killed(run, kinds, sharing): os.kill(os.getpid(), signal.SIGKILL)  # as the system does without memory
reproduce.compute_run = killed
run = make_run(method="none")
print(*reproduce.Pool({run.key: (run, set())}, 1, "local", {}).compute().values())
"""
ENDED = """
import signal
import parnb.data.scenes
parnb.data.scenes.cores = lambda: 2  # with one core, no other process renders
from parnb.study.reproduce import compute_run
from parnb.study.runs import make_run
signal.signal(signal.SIGTERM, lambda *_: None)  # as submitit does before it calls
try: compute_run(make_run(method="none", seed=99).model_dump(), [])  # renders 24,576 scenes, in two processes
except Exception as e: print("recorded as failed:", e)  # as submitit does
"""


HALF_STARTED = """
import os, time
from joblib.externals.loky.process_executor import _ExecutorManagerThread as Manager
start = Manager.start
def late(thread): os.kill(os.getpid(), signal.SIGTERM); time.sleep(1); start(thread)
Manager.start = late
"""


def members(process):
    "The processes of a process's group."
    return subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout.split()


def test_a_failing_run_stops_no_other(tmp_path):
    "It is named with its reason and its log; the other is measured."
    p = python(env(tmp_path, PARNB_QUIET="1"), "-c", SMOKE)
    assert p.returncode == 0, p.stderr
    result = json.loads(p.stdout.splitlines()[-1])
    assert list(result["failed"]) == [result["bad"]]
    reason = result["failed"][result["bad"]]
    assert "diverged" in reason and "learning rate" in reason
    log = Path(reason[reason.index("(log: ") + 6 : -1])
    assert log.exists() and "Traceback" in log.read_text()
    assert (tmp_path / "artifacts" / f"embedded-{result['good']}" / "record.json").exists()


def test_mistakes(tmp_path):
    "An unknown figure lists the known ones; seeds that are no numbers are named."
    figure, seeds = several([["reproduce", "--only", "fig77"], ["reproduce", "--seeds", "0,a"]], env(tmp_path))
    fails_with(figure, "unknown figure or table 'fig77'", "fig2_triggers")
    fails_with(seeds, "--seeds 0,a")


def test_dry_run_computes_nothing(tmp_path):
    "It prints how many runs have no result, names them, and leaves nothing behind."
    preset = tmp_path / "mine.json"
    preset.write_text(json.dumps(dict(base="tiny", images=260)))  # results of the scale tiny are those of other runs
    (tmp_path / "local_results").mkdir()
    shutil.copy(ROOT / "data" / "results" / "tiny.csv", tmp_path / "local_results" / "mine.csv")  # for their times
    p = parnb(tmp_path, "reproduce", "--scale", str(preset), "--only", "tab05", "--dry-run")
    assert p.returncode == 0, p.stderr
    assert "7 runs for 1 figure or table: 0 have results, 7 to compute, about" in p.stdout and "minutes" in p.stdout
    assert "rn badnet_stripes rate 0.05 par tau 2.15 noise 0.05 cutout 0.5 24576 pairs seed 0 [" in p.stdout
    assert not (tmp_path / "artifacts").exists()


def test_interrupted(tmp_path):
    "Ctrl-C ends the command and its processes."
    preset = tmp_path / "mine.json"
    preset.write_text(json.dumps(dict(base="tiny", images=260)))
    command = [PARNB, "reproduce", "--scale", str(preset), "--only", "tab05", "--jobs", "1"]
    p = start(command, tmp_path, stdout=subprocess.DEVNULL)
    wait_for(lambda: list((tmp_path / "runs" / "reproduce").rglob("*_log.out")), "a run is started", p, every=0.1)
    os.kill(p.pid, signal.SIGINT)
    assert p.wait(LONGEST) == 130, p.stderr.read()
    wait_for(lambda: not members(p), "no process of the command is left", seconds=60)


def test_a_job_that_a_cluster_ends_has_not_failed(tmp_path):
    """SIGTERM to a job and its workers, which render scenes, ends it.

    It records no result, no failure and nothing half-written: it may be started again elsewhere."""
    p = start([sys.executable, "-c", ENDED], tmp_path)
    wait_for(lambda: len(members(p)) >= 3, "the job has two more processes, which render", p)
    os.killpg(p.pid, signal.SIGTERM)
    out, err = p.communicate(timeout=LONGEST)
    assert not out and p.returncode and "KeyboardInterrupt" in err
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_job_that_ends_while_its_workers_start(tmp_path):
    "SIGTERM that comes when half of what renders is started is no failure either."
    p = python(env(tmp_path), "-c", ENDED.replace("try:", HALF_STARTED + "try:"))
    assert not p.stdout and p.returncode and "KeyboardInterrupt" in p.stderr
    assert not list(tmp_path.rglob(".tmp-*"))


def test_each_process_has_its_own_gpu(tmp_path):
    "Two runs at once see one GPU each; of four processes on two GPUs, each reckons with half of one."
    p = python(env(tmp_path, CUDA_VISIBLE_DEVICES="2,5", PARNB_QUIET="1"), "-c", SPREAD)
    assert p.returncode == 0, p.stderr
    assert {f.name for f in (tmp_path / "runs").iterdir()} - {"reproduce"} == {"2", "5"}


def test_a_killed_run_says_so(tmp_path):
    "A process that is killed leaves no traceback, and the reason names memory."
    p = python(env(tmp_path, PARNB_QUIET="1"), "-c", KILLED)
    assert p.returncode == 0 and "its process was killed, usually because memory ran out" in p.stdout, (
        p.stdout + p.stderr
    )


def test_figures_from_released_results(tmp_path):
    "A table is drawn again, byte for byte as it is committed, and nothing is computed."
    p = parnb(tmp_path, "reproduce", "--only", "tab12")
    assert p.returncode == 0, p.stderr
    assert "0 to compute" in p.stdout and not (tmp_path / "artifacts").exists()
    for end in ("csv", "md", "tex"):
        name = f"tab12_linear_probe.{end}"
        assert (tmp_path / "figures" / name).read_bytes() == (ROOT / "figures" / name).read_bytes()
