"Two processes that share a batch compute what one computes: losses, threshold and weights, also when resumed."

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

SCRIPT = """
import os
import sys
from pathlib import Path
import torch
from parnb.data.scenes import scenes
from parnb.models.clip import load_clip
from parnb.registry import find
from parnb.training import loop
from parnb.training.recipe import Recipe
method, out = sys.argv[1:]
torch.manual_seed(0)
load = lambda: load_clip('tiny-vit', 'emoji')[0]
model, tokenizer = load(), load_clip('tiny-vit', 'emoji')[2]
size = int(os.environ.get('BATCH', 16))
recipe = Recipe(epochs=2, batch_size=size, lr=1e-3, warmup=0., precision='no')
parameters = dict(par=dict(tau=0.004, noise=0, cutout=0), par_aligned=dict(tau=0.004)).get(method, {})
loop._WAIT = 0  # save as often as possible
calls = []
def monitor(_):
    calls.append(0)
    if len(calls) == 3 and 'STOP' in os.environ: sys.exit('stopped')
    return {}
options = dict(name='', monitor=monitor, every=2, partial=Path(out+'.partial'), save_seconds=0)
_, log = find('cleaner', method).make(**parameters).clean(model, scenes('dev', 64), tokenizer, recipe, load, **options)
if int(os.environ.get('RANK', 0)) == 0:
    log.to_csv(out+'.csv', index=False)
    torch.save(model.state_dict(), out+'.pt')
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("method", ["ft", "par", "par_aligned"])
def test_two_processes_are_one(tmp_path, method):
    (tmp_path / "train.py").write_text(SCRIPT)
    env = os.environ | dict(OMP_NUM_THREADS="1", PARNB_QUIET="1")
    one = [sys.executable, "train.py", method, "one"]
    two = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "train.py",
        method,
        "two",
    ]
    for command in (one, two):
        subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=300)
    if method == "ft":
        odd = subprocess.run(two, cwd=tmp_path, env=env | dict(BATCH="15"), capture_output=True, text=True, timeout=300)
        assert odd.returncode and "a batch of 15 pairs does not divide among 2 processes" in odd.stderr
    if method == "par":
        stopped = [*two[:-1], "stopped"]
        assert subprocess.run(
            stopped, cwd=tmp_path, env=env | dict(STOP="1"), capture_output=True, timeout=300
        ).returncode
        kept = torch.load(tmp_path / "stopped.partial", weights_only=True)
        assert 0 < len(kept["rows"]) < 8
        subprocess.run(stopped, cwd=tmp_path, env=env, check=True, timeout=300)
        x, y = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("two", "stopped"))
        assert all(torch.equal(x[k], y[k]) for k in x)
    a, b = (pd.read_csv(tmp_path / f"{n}.csv") for n in ("one", "two"))
    pd.testing.assert_frame_equal(a, b, rtol=1e-3, atol=1e-4)
    if method == "par":
        assert (a.s_img > 0.004).any() and (a.s_img <= 0.004).any(), "both distances below and above tau"
    x, y = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("one", "two"))
    assert max((x[k].float() - y[k].float()).abs().max() for k in x) < 2e-3
