"""Runs on a real Slurm, one of them requeued while it works, another one cancelled.

`.ci/slurm` starts a Slurm of one node; without one this test is skipped."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from waiting import wait_for

RUNS = """
import sys
from parnb.study.reproduce import Pool
from parnb.study.runs import make_run
which = (('badnet_stripes', 'none'), ('blended_text', 'par'), ('badnet_stripes', 'ft'))  # the last waits for the first
runs = [make_run(smoke=True, attack=a, method=m) for a, m in which]
options = dict(slurm_partition='main', mem_gb=4, cpus_per_task=1)
Pool.every = 1
failed = Pool({r.key: (r, set()) for r in runs}, 2, 'slurm', options).compute()
print(failed)
sys.exit(bool(failed))
"""


def slurm(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=300).stdout.strip()


def at_work(folder):
    "A job submitted there that has been running for at least four seconds: its training has begun or is about to."
    mine = rf"(\d+) (?:.*:)?(\d+):(\d\d) {re.escape(str(folder))}$"  # a job of the test before may still be ending
    running = re.findall(mine, slurm("squeue", "-h", "-t", "R", "-o", "%i %M %Z"), re.MULTILINE)
    return next((job for job, minutes, seconds in running if 60 * int(minutes) + int(seconds) >= 4), "")


def submit(folder, text):
    "Start a process that submits runs; the first job that is at work."
    if not shutil.which("sinfo") or "main" not in slurm("sinfo", "-h", "-o", "%P"):
        pytest.skip("there is no Slurm with a partition main here: .ci/slurm starts one")
    (folder / "go.py").write_text(text)
    env = os.environ | dict(PARNB_DATA=str(folder / "data"), OMP_NUM_THREADS="1")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    submitter = subprocess.Popen([sys.executable, "go.py"], cwd=folder, env=env, **pipes)
    return submitter, wait_for(lambda: at_work(folder), "a job runs for four seconds", submitter, every=1)


def test_three_runs_one_of_them_requeued(tmp_path):
    submitter, victim = submit(tmp_path, RUNS)
    slurm("scontrol", "requeue", victim)
    out, _ = submitter.communicate(timeout=1800)
    assert submitter.returncode == 0, out
    assert "Restarts=1" in slurm("scontrol", "show", "job", victim)
    assert len(list((tmp_path / "data" / "artifacts").glob("poisoned-*/record.json"))) == 2
    assert len(list((tmp_path / "data" / "artifacts").glob("cleaned-*/record.json"))) == 2


def test_a_cancelled_job_is_a_failed_run(tmp_path):
    "Without accounting, Slurm does not say how a job ended."
    submitter, victim = submit(tmp_path, RUNS.replace("in which]", "in which[:1]]"))
    slurm("scancel", victim)
    out, _ = submitter.communicate(timeout=600)
    assert submitter.returncode == 1 and "Slurm ended the job, and it left no result" in out, out
