"A user's own checkpoint, at the command line and in the notebook: what is wrong is said in one sentence, and nothing is left behind."
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from test_faults import PARNB, env, parnb, sentence


class Hostile:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "Forty pairs in a csv, and two classes."
    place = tmp_path_factory.mktemp('own')
    rng = np.random.default_rng(0)
    for i in range(40): Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(place/f'{i}.png')
    pd.DataFrame(dict(filepath=[f'{i}.png' for i in range(40)], title=[f'a photo of number {i}' for i in range(40)])).to_csv(place/'pairs.csv', index=False)
    for name in ('banana', 'fire_truck'):
        (place/'val'/name).mkdir(parents=True)
        for i in range(3): Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(place/'val'/name/f'{i}.png')
    return place


def clean(own, data, *args): return parnb(data, 'clean', '--model', 'tiny-rn', '--checkpoint', 'emoji', '--out', str(data/'cleaned'), *args)


def test_cleans_and_measures(own, tmp_path):
    p = clean(own, tmp_path, '--pairs', str(own/'pairs.csv'), '--epochs', '1', '--batch-size', '8', '--precision', 'no')
    assert p.returncode == 0, p.stderr
    assert p.stdout.strip() == str(tmp_path/'cleaned')
    p = parnb(tmp_path, 'measure', '--model', str(tmp_path/'cleaned'), '--images', str(own/'val'), '--attack', 'sig')
    assert p.returncode == 0 and 'n = 6' in p.stdout and 'sig' in p.stdout, p.stderr
    again = parnb(tmp_path, 'measure', '--model', 'tiny-rn', '--checkpoint', str(tmp_path/'cleaned')+'/', '--images', str(own/'val'), '--attack', 'sig')
    assert again.stdout == p.stdout, again.stderr


def test_said_in_one_sentence(own, tmp_path):
    sentence(clean(own, tmp_path, '--pairs', 'real'), '--model needs --pairs')
    sentence(clean(own, tmp_path, '--pairs', str(own/'pairs.csv'), '--caption-column', 'titel'), "did you mean 'title'?")
    sentence(clean(own, tmp_path, '--pairs', str(own/'pairs.csv')), '40 pairs do not fill one batch of 512')
    sentence(parnb(tmp_path, 'measure', '--model', 'tiny-rn', '--checkpoint', 'emoji', '--images', str(own/'val'), '--attack', 'sig', '--target', 'bananna'), "did you mean 'banana'?")
    assert not (tmp_path/'cleaned').exists()


def test_an_interrupted_measurement_goes_on(own, tmp_path):
    "Ctrl-C keeps what was embedded; the rest gives the numbers of a measurement in peace, and nothing is left behind."
    for k, name in enumerate(('banana', 'octopus')):
        (tmp_path/'val'/name).mkdir(parents=True)
        for i in range(400): shutil.copy(own/f'{(2*i+k) % 40}.png', tmp_path/'val'/name/f'{i}.png')
    def told(data): return [PARNB, 'measure', '--model', 'tiny-rn', '--checkpoint', 'emoji', '--images', str(tmp_path/'val'), '--attack', 'all', '--batch-size', '64', '--json'], dict(env=env(data), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command, how = told(tmp_path/'a')
    p = subprocess.Popen(command, **how)
    def kept(): return [f.stat().st_size for f in (tmp_path/'a'/'cache').glob('.partial-measured-*')]
    while not any(kept()): assert p.poll() is None; time.sleep(0.02)
    p.send_signal(signal.SIGINT)
    assert 'run the same command again' in p.communicate(timeout=60)[1] and p.returncode == 130
    had = sum(kept())
    again, peace = (subprocess.run(c, timeout=600, **h) for c, h in (told(tmp_path/'a'), told(tmp_path/'b')))
    assert had and again.returncode == 0 and json.loads(again.stdout) == json.loads(peace.stdout), again.stderr
    assert not kept() and len(list((tmp_path/'a'/'cache').glob('head-*'))) == 1


def test_a_hostile_checkpoint_runs_nothing(own, tmp_path):
    torch.save(dict(state_dict=Hostile(tmp_path/'ran')), tmp_path/'bad.pt')
    p = parnb(tmp_path, 'clean', '--model', 'tiny-rn', '--checkpoint', str(tmp_path/'bad.pt'), '--pairs', str(own/'pairs.csv'), '--out', str(tmp_path/'cleaned'))
    sentence(p, 'bad.pt', 'refused')
    assert not (tmp_path/'ran').exists() and not (tmp_path/'cleaned').exists()
    torch.load(tmp_path/'bad.pt', weights_only=False)  # it would have run
    assert (tmp_path/'ran').exists()


def test_a_scale_of_ones_own_goes_the_same_way(own, tmp_path):
    pd.DataFrame(dict(filepath=[f'{i % 40}.png' for i in range(160)], title=[f'a photo of number {i}' for i in range(160)])).to_csv(own/'more.csv', index=False)
    mine = dict(base='paper', encoders=dict(mine=dict(model='tiny-rn', pretrained='emoji')), pairs=dict(poison=80, clean=80), images=6, sources=dict(pairs='more.csv', images='val'), poisoning=dict(badnet_stripes=dict(rate=0.1)))
    (own/'mine.json').write_text(json.dumps(mine))
    given = '-p', 'scale', str(own/'mine.json'), '-p', 'attack', 'badnet_stripes', '-p', 'smoke', 'True'
    sentence(parnb(tmp_path, 'run', '03_par_clean', *given), "unknown encoder 'rn'")
    p = parnb(tmp_path, 'run', '03_par_clean', *given, '-p', 'encoder', 'mine')
    assert p.returncode == 0, p.stderr
    assert 'attack_success_rate' in p.stdout and len(list((tmp_path/'artifacts').glob('cleaned-*/model.safetensors'))) == 1
    (own/'more.csv').unlink()
    sentence(parnb(tmp_path/'other', 'run', '03_par_clean', *given, '-p', 'encoder', 'mine'), 'more.csv is not there')
    assert not list((tmp_path/'other'/'artifacts').glob('*/model.safetensors'))


def test_figures_and_tables_of_a_scale_of_ones_own(own, tmp_path):
    "Its runs, its results and its drawings lie apart from those of the scale tiny, and a second call computes nothing."
    short = dict(recipe=dict(epochs=1, batch_size=16))
    runs = [dict(attack='badnet_stripes', method='none'), dict(attack='badnet_stripes', method='par', tau=[2.15])]
    grid = dict(base='paper', encoder='mine', encoders=dict(mine=dict(model='tiny-rn', pretrained='emoji')), pairs=dict(poison=32, clean=32), images=6, sources=dict(pairs='pairs.csv', images='val'), poisoning=dict(badnet_stripes=dict(rate=0.1)),
                recipes=dict(default=dict(poison=short['recipe'])), cleaning=dict(par=short), experiments=dict(tab05_tau=runs, fig4_dynamics_tsne=runs))
    pd.DataFrame(dict(filepath=[f'{i % 40}.png' for i in range(64)], title=[f'a photo of number {i}' for i in range(64)])).to_csv(own/'pairs.csv', index=False)
    (own/'grid.json').write_text(json.dumps(grid))
    command = 'reproduce', '--scale', str(own/'grid.json'), '--only', 'tab05', '--only', 'fig4'
    p = parnb(tmp_path, *command, '--jobs', '2')
    assert p.returncode == 0 and '2 to compute' in p.stdout, p.stderr
    assert len(pd.read_csv(tmp_path/'results'/'grid.csv')) == 2
    assert {f.name for f in (tmp_path/'figures').iterdir()} == {'grid'} and {'tab05_tau.csv', 'fig4_dynamics_tsne_badnet_stripes.png'} <= {f.name for f in (tmp_path/'figures'/'grid').iterdir()}
    assert pd.read_csv(tmp_path/'figures'/'grid'/'tab05_tau.csv').CA.notna().all()
    assert '0 to compute' in parnb(tmp_path, *command, '--dry-run').stdout
    (own/'grid.json').write_text(json.dumps(dict(grid, encoder='other')))
    sentence(parnb(tmp_path, *command), "unknown encoder 'other'")


def test_the_grid_of_the_paper_is_known_offline(tmp_path):
    p = parnb(tmp_path, 'reproduce', '--scale', 'paper', '--dry-run')
    assert p.returncode == 0, p.stderr
    assert 'RN50 badnet_stripes rate 0.003 par tau 2.15 250000 pairs seed 0 [' in p.stdout and 'name no synthetic pairs' in p.stdout
    sentence(parnb(tmp_path, 'reproduce', '--scale', 'paper', '--gpus', '1'), 'add --executor slurm')
