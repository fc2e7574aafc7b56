"Runs on a real Slurm, one of them killed and requeued. `.ci/slurm` starts a Slurm of one node; without one there is nothing to test."
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

SCRIPT = """
import sys
from parnb.experiments import _compute_all, make_run
runs = [make_run(smoke=True, attack=a, method=m) for a, m in (('badnet_stripes', 'none'), ('blended_text', 'par'), ('sig', 'ft'))]
failed = _compute_all({r.key: (r, []) for r in runs}, 2, 'slurm', dict(slurm_partition='main', mem_gb=4, cpus_per_task=1))
print(failed)
sys.exit(bool(failed))
"""


def slurm(*command): return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


def test_three_runs_one_of_them_requeued(tmp_path):
    if not shutil.which('sinfo') or 'main' not in slurm('sinfo', '-h', '-o', '%P'): pytest.skip('there is no Slurm with a partition main here: .ci/slurm starts one')
    (tmp_path/'go.py').write_text(SCRIPT)
    env = os.environ | dict(PARNB_DATA=str(tmp_path/'data'), OMP_NUM_THREADS='1')
    went = subprocess.Popen([sys.executable, 'go.py'], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end, victim = time.time()+300, ''
    while not victim and time.time() < end and went.poll() is None:
        time.sleep(1)
        victim = next((i for i, t in re.findall(r'(\d+) \d*:?\d+:(\d\d)', slurm('squeue', '-h', '-t', 'R', '-o', '%i %M')) if int(t) >= 4), '')
    assert victim, 'no run was at work for four seconds'
    slurm('scontrol', 'requeue', victim)
    said, _ = went.communicate(timeout=600)
    assert went.returncode == 0, said
    assert 'Restarts=1' in slurm('scontrol', 'show', 'job', victim)
    assert len(list((tmp_path/'data'/'artifacts').glob('poisoned-*/record.json'))) == 3
    assert len(list((tmp_path/'data'/'artifacts').glob('cleaned-*/record.json'))) == 2
