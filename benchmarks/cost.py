"""What a cleaning costs: time and memory of each method on each encoder.

    python benchmarks/cost.py [--encoders rn vit] [--methods ft cleanclip roclip par] [--missing]

Each is some forty training steps in a process of its own, over two epochs, since RoCLIP's differ; the first steps are left out, and nobody looks
at the student on the way. A row is filed in data/results/SCALE_cost.csv as soon as it is measured, in place of an older one of the same encoder
and method, so that an interrupted run loses nothing: --missing goes on from there. Wants an otherwise idle machine. Nothing is asserted.
"""
import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time

KEYS = ('scale', 'encoder', 'method')
METHODS = ['ft', 'cleanclip', 'roclip', 'par']


def measure(scale: str, encoder: str, method: str, steps: int, warmup: int, threads: int) -> dict:
    "One row, measured in this process: cleaning the clean weights takes the steps that cleaning poisoned ones takes."
    import torch
    from parnb.cleaning import fit
    from parnb.data import scenes
    from parnb.experiments import cleaned_clip, make_run, objective_of
    from parnb.models import load_clip
    torch.set_num_threads(threads)
    run = make_run(scale, encoder, 'none', method)
    c = run.cleaning
    bs, half = c.recipe.batch_size, steps//2
    pairs = scenes('clean', half*bs)
    folder = cleaned_clip(run.model_copy(update=dict(cleaning=None)))
    model, _, tokenizer = load_clip(folder)
    objective, at = objective_of(c, model, folder), []
    batch, prepare = objective.batch, objective.prepare
    def timed_batch(*args):  # the first thing that each step does
        at.append(time.perf_counter())
        return batch(*args)
    def timed_prepare(*args):
        t0 = time.perf_counter()
        prepare(*args)
        at.append(time.perf_counter()-t0)
    objective.batch, objective.prepare = timed_batch, timed_prepare
    fit(objective, pairs, tokenizer, c.recipe.model_copy(update=dict(epochs=2.)), name='')
    end = time.perf_counter()
    prepared, starts = at[0], at[1:]
    step = (end-starts[warmup])/(len(starts)-warmup)
    whole = round(c.recipe.epochs*(c.count//bs))*step+prepared*c.count/len(pairs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)
    return dict(scale=scale, encoder=encoder, method=method, batch_size=bs, steps=len(starts), warmup=warmup, threads=threads, pairs=len(pairs), step_seconds=step,
                pairs_per_second=bs/step, prepare_seconds=prepared, cleaning_seconds=whole, peak_mb=peak/1e6, torch=torch.__version__, machine=platform.machine())


def file_row(row: dict):
    "Add the row, or put it in the place of the one with the same encoder and method."
    import pandas as pd
    from parnb.core import RESULTS, locked, write_file
    path = RESULTS/f"{row['scale']}_cost.csv"
    with locked(path):
        new = pd.DataFrame([row])
        if path.exists():
            old = pd.read_csv(path)
            new = pd.concat([old[(old[list(KEYS)] != [row[k] for k in KEYS]).any(axis=1)], new])
        write_file(path, new.sort_values(list(KEYS)).to_csv(index=False, float_format='%.5g'))


def on_file(scale: str) -> set:
    "The (encoder, method) that are filed."
    from parnb.tables import cost_rows
    t = cost_rows(scale)
    return set(zip(t.encoder, t.method))


def parser() -> argparse.ArgumentParser:
    "The options."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--scale', default='tiny', help='a preset (%(default)s)')
    p.add_argument('--encoders', nargs='+', default=['rn', 'vit'], help='which (%(default)s)')
    p.add_argument('--methods', nargs='+', default=METHODS, choices=METHODS, metavar='METHOD', help='which (%(default)s)')
    p.add_argument('--steps', type=int, default=40, help='training steps, an even number (%(default)s)')
    p.add_argument('--warmup', type=int, default=6, help='steps at the beginning that do not count (%(default)s)')
    p.add_argument('--threads', type=int, default=2, help='threads of each process (%(default)s)')
    p.add_argument('--missing', action='store_true', help='only what is not on file')
    p.add_argument('--row', metavar='ENCODER:METHOD', help='measure one in this very process and print its row as JSON; files nothing')
    return p


def main():
    a = parser().parse_args()
    if a.steps % 2 or not 0 <= a.warmup < a.steps: parser().error(f'--steps {a.steps} --warmup {a.warmup}: an even number of steps, and fewer of them for the warm-up')
    if a.row: return print(json.dumps(measure(a.scale, *a.row.split(':'), a.steps, a.warmup, a.threads)))
    wanted = [(e, m) for e in a.encoders for m in a.methods]
    todo = [w for w in wanted if not a.missing or w not in on_file(a.scale)]
    env = os.environ | dict(OMP_NUM_THREADS=str(a.threads), PARNB_QUIET='1')
    from parnb.data import scenes
    from parnb.experiments import make_run
    for e, m in todo: scenes('clean', a.steps//2*make_run(a.scale, e, 'none', m).cleaning.recipe.batch_size)  # a wrong name shows here; rendering is no cost of a method
    for i, (e, m) in enumerate(todo):
        print(f'{i+1}/{len(todo)} {e} {m} …', end=' ', flush=True)
        command = [sys.executable, __file__, '--row', f'{e}:{m}', '--scale', a.scale, '--steps', str(a.steps), '--warmup', str(a.warmup), '--threads', str(a.threads)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode: sys.exit(f'failed:\n{done.stderr[-2000:]}')
        row = json.loads(done.stdout.splitlines()[-1])
        file_row(row)
        print(f"{1000*row['step_seconds']:.0f} ms a step, {row['pairs_per_second']:.0f} pairs/s, {row['peak_mb']:.0f} MB", flush=True)
    if not todo: print('all on file')


if __name__ == '__main__':
    from parnb.core import ParnbError
    try: main()
    except ParnbError as e: sys.exit(f'cost.py: {e}')
    except KeyboardInterrupt: sys.exit('interrupted; what was measured is filed, --missing goes on')
