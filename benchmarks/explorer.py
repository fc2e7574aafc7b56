"""How fast the explorer answers: from a change of a control until picture, numbers and map are handed to the browser.

    OMP_NUM_THREADS=1 python benchmarks/explorer.py [--encoder rn] [--repeat 20] [--most 0.3] [--out FILE.csv]

Without a browser: what it takes to draw what it is given is not in here. Looks at every pair of models that is on this machine, `parnb run 03_par_clean`
makes one; another model is measured with a single pair too, opened anew. A change to a model is a first one where it has to be read from the disk, and a
later one where it is still open. Maps are made before the clock starts. Fails where a median is above `--most` seconds. Wants an otherwise idle machine:
`cpu` is what the process itself used, and tells how busy the machine was.
"""
import argparse
import itertools
import os
import sys
import time
from pathlib import Path

import pandas as pd

from parnb import explorer as module
from parnb.core import ParnbError, write_file
from parnb.experiments import make_run
from parnb.explorer import CLEANERS, Explorer, is_made, taus_of
from parnb.triggers import TRIGGERS


def made(encoder: str) -> list[tuple[str, str, float]]:
    "The (attack, method, tau) whose two models are on this machine."
    found = []
    for attack, method in itertools.product(TRIGGERS, CLEANERS):
        if not is_made(make_run(encoder=encoder, attack=attack, method='none')): continue
        for tau in taus_of(make_run(encoder=encoder, attack=attack)) if method == 'par' else [2.15]:
            if is_made(make_run(encoder=encoder, attack=attack, method=method, tau=tau)): found.append((attack, method, tau))
    return found


def timed(rows: list, kind: str, act, *args):
    "Do something and note how long it took."
    wall, cpu = time.perf_counter(), time.process_time()
    act(*args)
    rows.append(dict(change=kind, wall=time.perf_counter()-wall, cpu=time.process_time()-cpu))


def choose(e: Explorer, pair: tuple[str, str, float], rows: list, kind: str):
    "Change what is not yet chosen as a person would, one control after the other; at least one."
    changes = [(c, v) for c, v in zip((e.attack, e.method, e.tau), pair) if c.value != v]
    for control, value in changes: timed(rows, kind, setattr, control, 'value', value)
    if not changes: timed(rows, kind, e.show)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--encoder', default='rn')
    parser.add_argument('--repeat', type=int, default=20)
    parser.add_argument('--most', type=float, default=0.3)
    parser.add_argument('--out', type=Path)
    a = parser.parse_args()
    pairs = made(a.encoder)
    if not pairs: raise ParnbError(f"no pair of models of {a.encoder} is on this machine: make one with `parnb run 03_par_clean -p encoder {a.encoder}`")
    rows, e = [], Explorer(encoder=a.encoder, attack=pairs[0][0], method=pairs[0][1], tau=pairs[0][2])
    for p in pairs:
        choose(e, p, [], '')
        e.wait()
    for i in range(a.repeat): timed(rows, 'image', setattr, e.image, 'value', (i+1) % (e.image.max+1))
    for i in range(a.repeat): timed(rows, 'strength', setattr, e.strength, 'value', 0.5+(i+1)/a.repeat)
    for p in (pairs*a.repeat)[:a.repeat]: choose(e, p, rows, 'model, opened before')
    for p in (pairs*a.repeat)[:a.repeat]:
        module._open.cache_clear()
        choose(e, p, rows, 'model, first time')
    if e.error: raise e.error
    t = pd.DataFrame(rows).groupby('change', sort=False).agg(n=('wall', 'size'), wall=('wall', 'median'), worst=('wall', 'max'), cpu=('cpu', 'median')).reset_index()
    print(f'{len(pairs)} pairs of models, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians in seconds')
    print(t.to_string(index=False, float_format='{:.3f}'.format))
    if a.out: write_file(a.out, t.to_csv(index=False, float_format='%.4f'))
    if slow := t.change[t.wall > a.most].tolist(): sys.exit(f"above {a.most:g} s: {', '.join(slow)}")


if __name__ == '__main__':
    try: main()
    except ParnbError as e: sys.exit(f'benchmarks/explorer.py: {e}')
