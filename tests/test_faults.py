"What a user meets when something goes wrong: real processes, real signals, a real full disk."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARNB = str(Path(sys.executable).parent/'parnb')
MEASURE = ['measure', '--smoke', '--attack', 'badnet_stripes', '--json']


def env(data, **more):
    "An environment whose data folder is `data`."
    return os.environ | dict(PARNB_DATA=str(data), PARNB_FIGURES=str(data/'figures'), OMP_NUM_THREADS='1') | more


def parnb(data, *args, **more):
    "Run the command line to its end."
    return subprocess.run([PARNB, *args], env=env(data, **more), capture_output=True, text=True, timeout=600)


def metrics(p):
    "What a measurement says, without how long it took."
    assert p.returncode == 0, p.stderr
    return {k: v for k, v in json.loads(p.stdout).items() if 'seconds' not in k}


def sentence(p, *words):
    "The process failed with one sentence that holds the words."
    assert p.returncode != 0
    said = [line for line in p.stderr.splitlines() if line.startswith('parnb: ')]
    assert len(said) == 1 and 'Traceback' not in p.stderr, p.stderr
    for w in words: assert w in said[0], said[0]


@pytest.fixture(scope='session')
def undisturbed(tmp_path_factory):
    "A data folder in which a smoke run was made in peace, and its metrics."
    data = tmp_path_factory.mktemp('undisturbed')
    return data, metrics(parnb(data, *MEASURE))


@pytest.fixture
def drawn(undisturbed, tmp_path):
    "A data folder with the scenes drawn, and nothing trained."
    shutil.copytree(undisturbed[0]/'cache', tmp_path/'cache')
    return tmp_path


@pytest.mark.parametrize('stage', ['cache/.tmp-scenes-poison', 'artifacts/.tmp-poisoned', 'artifacts/.tmp-cleaned', 'artifacts/.tmp-embedded'])
def test_killed_in_a_stage_and_run_again(undisturbed, tmp_path, stage):
    "kill -9 at the start of a stage leaves nothing half-written, and a rerun gives the same numbers."
    if 'scenes' not in stage: shutil.copytree(undisturbed[0]/'cache', tmp_path/'cache')
    p = subprocess.Popen([PARNB, *MEASURE], env=env(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    folder, name = (tmp_path/stage).parent, Path(stage).name
    deadline = time.monotonic()+300
    while not list(folder.glob(f'{name}*')):
        assert p.poll() is None and time.monotonic() < deadline, 'the stage was never seen'
        time.sleep(0.002)
    time.sleep(0.3)
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    finished = [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith('.')]
    assert all((f/'record.json').exists() or (f/'pairs.json').exists() for f in finished)
    assert metrics(parnb(tmp_path, *MEASURE)) == undisturbed[1]
    assert not list(tmp_path.rglob('.tmp-*')) and not list(tmp_path.rglob('.partial-*'))


def test_cached_is_not_computed_again(undisturbed):
    "A second call finds every artifact and says the same."
    data, said = undisturbed
    before = {f: f.stat().st_mtime_ns for f in data.rglob('record.json')}
    assert metrics(parnb(data, *MEASURE)) == said
    assert {f: f.stat().st_mtime_ns for f in data.rglob('record.json')} == before and len(before) == 3


def test_two_processes_one_works(drawn, undisturbed):
    "Two processes that ask for the same thing share one computation."
    both = [subprocess.Popen([PARNB, *MEASURE], env=env(drawn), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate(timeout=600) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    for out, _ in said: assert {k: v for k, v in json.loads(out).items() if 'seconds' not in k} == undisturbed[1]
    assert len(list((drawn/'artifacts').glob('poisoned-*'))) == 1


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c(drawn, how):
    "An interrupt, or the end of a cluster's job, ends with one sentence and code 130, and leaves nothing half-written."
    p = subprocess.Popen([PARNB, *MEASURE], env=env(drawn), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((drawn/'artifacts').glob('.tmp-poisoned*')): time.sleep(0.01)
    p.send_signal(how)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'run the same command again' in err and 'Traceback' not in err
    assert not list(drawn.rglob('.tmp-*'))


@pytest.mark.parametrize('size', ['3m', '17m'])
def test_full_disk(undisturbed, tmp_path, size):
    "A disk that is full while scenes are drawn, or while a model is saved, is named; what was finished stays."
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(tmp_path)], capture_output=True).returncode: pytest.skip('a small disk needs the right to mount one')
    try:
        for name in ('cache',) if size == '17m' else (): (tmp_path/name).symlink_to(undisturbed[0]/name)
        if size == '17m': (tmp_path/'ballast').write_bytes(b'0'*14_000_000)
        p = parnb(tmp_path, *MEASURE)
        sentence(p, 'is full', 'PARNB_DATA')
        assert not list(tmp_path.glob('*/.tmp-*'))
    finally: subprocess.run(['umount', str(tmp_path)])


def test_damaged_scenes(drawn):
    "A flipped byte in the cache is found, and the folder named."
    f = next((drawn/'cache').glob('scenes-poison-*'))/'images.npy'
    raw = bytearray(f.read_bytes())
    raw[5000] ^= 1
    f.write_bytes(raw)
    sentence(parnb(drawn, *MEASURE), 'checksum', str(f.parent))


def test_truncated_weights(undisturbed, tmp_path):
    "A cut model file is found before it is used, and the remedy named."
    shutil.copytree(undisturbed[0], tmp_path/'d')
    for e in (tmp_path/'d'/'artifacts').glob('embedded-*'): shutil.rmtree(e)
    f = next((tmp_path/'d'/'artifacts').glob('cleaned-*'))/'model.safetensors'
    f.write_bytes(f.read_bytes()[:100_000])
    sentence(parnb(tmp_path/'d', *MEASURE), 'truncated or altered', 'delete the folder')


@pytest.mark.parametrize('args, words', [
    (['measure', '--attack', 'blended_txt'], ["did you mean 'blended_text'?"]),
    (['measure', '--tau', '4.5'], ['(0, 4]']),
    (['measure', '--tau', '0'], ['(0, 4]']),
    (['measure', '--rate', '0.00001'], ['poisons 0 of']),
    (['measure', '--target', 'bananna'], ["did you mean 'banana'?"]),
    (['measure', '--encoder', 'resnet'], ['known: rn, vit']),
    (['run', '03_par_claen'], ["did you mean '03_par_clean'?"]),
    (['run', '03_par_clean', '-p', 'taw', '2'], ["did you mean 'tau'?"]),
    (['run', '03_par_clean', '-p', 'tau', '9'], ['(0, 4]']),
])
def test_mistakes_are_one_sentence(tmp_path, args, words): sentence(parnb(tmp_path, *args), *words)


def test_torchrun(tmp_path):
    "Several processes of one training would wait for each other: it is said instead."
    sentence(parnb(tmp_path, *MEASURE, WORLD_SIZE='2'), 'torchrun', 'parnb reproduce --jobs')


def test_papermill_as_users_type_it(undisturbed):
    "papermill works with an output, and without one when it is redirected; the notebook holds clean outputs."
    notebook = str(Path(__file__).parents[1]/'nbs'/'03_par_clean.ipynb')
    papermill = str(Path(sys.executable).parent/'papermill')
    p = subprocess.run([papermill, notebook, '-p', 'tau', '2.15', '-p', 'smoke', 'True', '-p', 'attack', 'badnet_stripes'], env=env(undisturbed[0]), capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, p.stderr[-2000:]
    nb = json.loads(p.stdout)
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not [o for o in outputs if o['output_type'] == 'error'] and 'widgets' not in nb['metadata']
    assert 'Passed unknown parameter' not in p.stderr
    table = next(o['text'] for c in nb['cells'] if 'report' in c['metadata'].get('tags', []) for o in c['outputs'])
    assert f"{undisturbed[1]['clean_accuracy']:.4f}" in ''.join(table)


def test_synthetic_pairs(undisturbed):
    "The drawn pairs clean as the scenes do, and are another run."
    data, before = undisturbed
    after = metrics(parnb(data, *MEASURE, '--pairs', 'synthetic'))
    assert after['pairs'] == 'synthetic' and after['key'] != before['key']
    assert len(list((data/'cache').glob('synthetic-*/000/00000.tar'))) == 1
