"""Response time of the explorer: from a change of a control until picture, numbers and map are handed to the browser.

    OMP_NUM_THREADS=1 python benchmarks/explorer.py [--encoder rn] [--repeat 20] [--most 0.3] [--out FILE.csv]

The browser's own time is not included. Uses every pair of models in the cache; `parnb run 03_par_clean` makes one. A
change to another model is a first one if the model is read from the disk, and a later one if it is still in memory;
with a single pair of models, it is opened again. Maps are computed before the clock starts. Fails if a median is above
`--most` seconds. Needs an otherwise idle machine: `cpu` is the time of the process itself and shows how busy the
machine was.
"""

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

import pandas as pd
from parnb.core import ParnbError, write_file
from parnb.registry import attacks, cleaners
from parnb.show import comparison
from parnb.show.choices import is_cached, measured_values, numeric_parameters
from parnb.show.explorer import Explorer
from parnb.study.runs import make_run

Pair = tuple[str, str, dict[str, float]]  # attack, method, the method's main parameter


def cached_pairs(encoder: str) -> list[Pair]:
    "The attacks, methods and main parameters whose two models are in the cache."
    found = []
    for attack, method in itertools.product(attacks(), cleaners()):
        if not is_cached(make_run(encoder=encoder, attack=attack, method="none")):
            continue
        run, main = make_run(encoder=encoder, attack=attack, method=method), numeric_parameters(cleaners()[method].cls)
        values = [{main[0]: v} for v in measured_values(run, main[0])] if main else [{}]
        for v in values:
            if is_cached(make_run(encoder=encoder, attack=attack, method=method, **v)):
                found.append((attack, method, v))
    return found


def timed(rows: list, kind: str, act, *args):
    "Do something and note how long it took."
    wall, cpu = time.perf_counter(), time.process_time()
    act(*args)
    rows.append(dict(change=kind, wall=time.perf_counter() - wall, cpu=time.process_time() - cpu))


def choose(e: Explorer, pair: Pair, rows: list, kind: str):
    "Change what is not yet chosen, one control after the other; at least one."
    attack, method, value = pair
    wanted = [(e.attack, attack), (e.method, method)] + [(e.sliders[method][p], v) for p, v in value.items()]
    done = False
    for control, v in wanted:
        if control.value != v:
            timed(rows, kind, setattr, control, "value", v)
            done = True
    if not done:
        timed(rows, kind, e.show)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="rn")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--most", type=float, default=0.3)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    pairs = cached_pairs(a.encoder)
    if not pairs:
        command = f"parnb run 03_par_clean -p encoder {a.encoder}"
        raise ParnbError(f"no pair of models of {a.encoder} is in the cache: `{command}` makes one")
    attack, method, value = pairs[0]
    rows, e = [], Explorer(encoder=a.encoder, attack=attack, method=method, **value)
    for p in pairs:
        choose(e, p, [], "")
        e.wait()
    for i in range(a.repeat):
        timed(rows, "image", setattr, e.image, "value", (i + 1) % (e.image.max + 1))
    low, high = e.strength.min, e.strength.max
    for i in range(a.repeat):
        timed(rows, "strength", setattr, e.strength, "value", low + (high - low) * (i + 1) / a.repeat)
    some = (pairs * a.repeat)[: a.repeat]
    for p in some:
        choose(e, p, rows, "model, opened before")
    for p in some:
        comparison._open.cache_clear()
        choose(e, p, rows, "model, first time")
    if e.error:
        raise e.error
    columns = dict(n=("wall", "size"), wall=("wall", "median"), worst=("wall", "max"), cpu=("cpu", "median"))
    t = pd.DataFrame(rows).groupby("change", sort=False).agg(**columns).reset_index()
    print(f"{len(pairs)} pairs of models, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians in seconds")
    print(t.to_string(index=False, float_format="{:.3f}".format))
    if a.out:
        write_file(a.out, t.to_csv(index=False, float_format="%.4f"))
    if slow := t.change[t.wall > a.most].tolist():
        sys.exit(f"above {a.most:g} s: {', '.join(slow)}")


if __name__ == "__main__":
    try:
        main()
    except ParnbError as e:
        sys.exit(f"benchmarks/explorer.py: {e}")
