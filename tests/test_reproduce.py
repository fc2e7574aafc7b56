"`parnb reproduce` as a user runs it: processes, failures, interruption, and a redraw that trains nothing."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from test_faults import PARNB, env, parnb, sentence

ROOT = Path(__file__).parents[1]
SMOKE = """
import json, sys
from parnb.experiments import _compute_all, make_run, run_name
good, bad = make_run(smoke=True, method='none'), make_run(smoke=True, method='ft', recipe=dict(lr=1e9, warmup=0.))
failed = _compute_all({r.key: (r, []) for r in (bad, good)}, 2, 'local', {})
print(json.dumps(dict(failed=failed, bad=run_name(bad), good=good.key)))
"""

SPREAD = """
import os, time
import parnb.experiments as experiments
def note(run, kinds):
    time.sleep(3)
    (experiments.RUNS/os.environ['CUDA_VISIBLE_DEVICES']).touch()
experiments._compute = note
runs = [experiments.make_run(method='none', seed=s) for s in (0, 1)]
experiments._compute_all({r.key: (r, []) for r in runs}, 2, 'local', {})
"""
ENDED = """
import signal
from parnb.experiments import _compute, make_run
signal.signal(signal.SIGTERM, lambda *_: None)  # as submitit does before it calls
try: _compute(make_run(smoke=True, method='none').model_dump(), [])
except Exception as e: print('on file as failed:', e)  # as submitit does
"""


def test_a_failing_run_stops_no_other(tmp_path):
    "It is named with its reason and its log; the other's measurement is there."
    p = subprocess.run([sys.executable, '-c', SMOKE], env=env(tmp_path, PARNB_QUIET='1'), capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, p.stderr
    said = json.loads(p.stdout.splitlines()[-1])
    assert list(said['failed']) == [said['bad']]
    why = said['failed'][said['bad']]
    assert 'lower the learning rate' in why
    log = Path(why[why.index('(log: ')+6:-1])
    assert log.exists() and 'Traceback' in log.read_text()
    assert (tmp_path/'artifacts'/f"embedded-{said['good']}"/'record.json').exists()


def test_mistakes(tmp_path):
    "An unknown figure lists the known ones; seeds that are no numbers are said."
    sentence(parnb(tmp_path, 'reproduce', '--only', 'fig77'), "unknown figure or table 'fig77'", 'fig2_triggers')
    sentence(parnb(tmp_path, 'reproduce', '--seeds', '0,a'), '--seeds 0,a')


def test_dry_run_computes_nothing(tmp_path):
    "It says how many runs are missing, names them, and leaves nothing behind."
    p = parnb(tmp_path, 'reproduce', '--only', 'tab05', '--dry-run')
    assert p.returncode == 0, p.stderr
    assert '0 on file' in p.stdout and 'minutes' in p.stdout and 'rn badnet_stripes rate 0.05 par tau 2.15 24576 pairs seed 0 [' in p.stdout
    assert not (tmp_path/'artifacts').exists()


def test_interrupted(tmp_path):
    "Ctrl-C ends the command and its processes."
    p = subprocess.Popen([PARNB, 'reproduce', '--only', 'tab05', '--jobs', '1'], env=env(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic()+120
    while not list((tmp_path/'runs'/'reproduce').glob('*_log.out')):
        assert p.poll() is None and time.monotonic() < deadline, 'no run was ever started'
        time.sleep(0.1)
    os.kill(p.pid, signal.SIGINT)
    assert p.wait(60) == 130, p.stderr.read()
    time.sleep(2)
    left = subprocess.run(['pgrep', '-g', str(p.pid)], capture_output=True, text=True).stdout.split()
    assert not left, f'processes are left: {left}'


def test_a_job_that_a_cluster_ends_has_not_failed(tmp_path):
    "SIGTERM to a job and its drawing workers ends it with nothing on file and nothing half-written: it may be started again elsewhere."
    p = subprocess.Popen([sys.executable, '-c', ENDED], env=env(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic()+120
    while len(subprocess.run(['pgrep', '-g', str(p.pid)], capture_output=True, text=True).stdout.split()) < 3:
        assert p.poll() is None and time.monotonic() < deadline, 'no worker was ever started'
        time.sleep(0.05)
    os.killpg(p.pid, signal.SIGTERM)
    said, why = p.communicate(timeout=60)
    assert not said and p.returncode and 'KeyboardInterrupt' in why
    assert not list(tmp_path.rglob('.tmp-*'))


def test_each_process_has_a_gpu_of_its_own(tmp_path):
    p = subprocess.run([sys.executable, '-c', SPREAD], env=env(tmp_path, CUDA_VISIBLE_DEVICES='2,5', PARNB_QUIET='1'), capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, p.stderr
    assert {f.name for f in (tmp_path/'runs').iterdir()} - {'reproduce'} == {'2', '5'}


def test_a_redraw_trains_nothing(tmp_path):
    "With the results on file, a table is written anew, byte for byte as it is committed, and nothing is computed."
    (tmp_path/'results').mkdir()
    for f in (ROOT/'data'/'results').glob('*.csv'): (tmp_path/'results'/f.name).write_bytes(f.read_bytes())
    assert '0 to compute' in parnb(tmp_path, 'reproduce', '--only', 'tab12', '--dry-run').stdout
    p = parnb(tmp_path, 'reproduce', '--only', 'tab12')
    assert p.returncode == 0, p.stderr
    assert not (tmp_path/'artifacts').exists()
    for end in ('csv', 'md', 'tex'): assert (tmp_path/'figures'/f'tab12_linear_probe.{end}').read_bytes() == (ROOT/'figures'/f'tab12_linear_probe.{end}').read_bytes()
