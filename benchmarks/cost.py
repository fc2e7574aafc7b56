"""Cost of a cleaning: time and memory of each method on each encoder.

    python benchmarks/cost.py [--encoders rn vit] [--methods ft cleanclip roclip par] [--missing]

Each measurement takes some forty training steps in a process of its own, over two epochs, since RoCLIP's differ; the
first steps do not count, and the student is not monitored. A row is written to the results of this machine as soon as
it is measured and replaces an older one of the same encoder and method, so an interrupted run loses nothing: --missing
continues it. Needs an otherwise idle machine. Nothing is asserted.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time

KEYS = ["scale", "encoder", "method"]
RSS_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


def measure(scale: str, encoder: str, method: str, steps: int, warmup: int, threads: int) -> dict:
    "One row, measured in this process on the clean weights, whose cleaning takes the same time."
    import torch
    from parnb.data.scenes import scenes
    from parnb.models.clip import load_clip
    from parnb.study.artifacts import clean_clip
    from parnb.study.runs import make_run
    from parnb.training.loop import fit

    torch.set_num_threads(threads)
    run = make_run(scale, encoder, "none", method)
    c, folder = run.cleaning, clean_clip(run)
    size, pairs = c.recipe.batch_size, scenes("clean", steps // 2 * c.recipe.batch_size)
    model, _, tokenizer = load_clip(folder)
    objective = c.cleaner().objective(model, c.recipe, lambda: load_clip(folder)[0])
    begun, prepared, batch, prepare = [], [], objective.batch, objective.prepare

    def timed_batch(*args):  # called first in each step
        begun.append(time.perf_counter())
        return batch(*args)

    def timed_prepare(*args):
        start = time.perf_counter()
        prepare(*args)
        prepared.append(time.perf_counter() - start)

    objective.batch, objective.prepare = timed_batch, timed_prepare
    fit(objective, pairs, tokenizer, c.recipe.model_copy(update=dict(epochs=2.0)), name="")
    step = (time.perf_counter() - begun[warmup]) / (len(begun) - warmup)
    return dict(
        scale=scale,
        encoder=encoder,
        method=method,
        batch_size=size,
        steps=len(begun),
        warmup=warmup,
        threads=threads,
        pairs=len(pairs),
        step_seconds=step,
        pairs_per_second=size / step,
        prepare_seconds=prepared[0],
        cleaning_seconds=round(c.recipe.epochs * (c.count // size)) * step + prepared[0] * c.count / len(pairs),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_BYTES / 1e6,
        torch=torch.__version__,
        machine=platform.machine(),
    )


def write_row(row: dict, release: bool):
    "Add a row to the results, in place of one with the same encoder and method."
    import pandas as pd
    from parnb.core import LOCAL, RELEASED, locked, write_file

    path = (RELEASED if release else LOCAL) / f"{row['scale']}_cost.csv"
    with locked(path):
        table = pd.DataFrame([row])
        if path.exists():
            old = pd.read_csv(path)
            table = pd.concat([old[(old[KEYS] != [row[k] for k in KEYS]).any(axis=1)], table])
        write_file(path, table.sort_values(KEYS).to_csv(index=False, float_format="%.5g"))


def trained_by_fit() -> list[str]:
    "The cleaners that train by `fit`, whose steps can be timed."
    from parnb.cleaners.base import Cleaner
    from parnb.registry import cleaners

    return [name for name, m in cleaners().items() if m.cls.clean is Cleaner.clean]


def parser() -> argparse.ArgumentParser:
    "The options."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--scale", default="tiny", help="a preset (%(default)s)")
    p.add_argument("--encoders", nargs="+", default=["rn", "vit"], help="which (%(default)s)")
    p.add_argument("--methods", nargs="+", metavar="METHOD", help="which (all cleaners that train)")
    p.add_argument("--steps", type=int, default=40, help="training steps, an even number (%(default)s)")
    p.add_argument("--warmup", type=int, default=6, help="steps at the beginning that do not count (%(default)s)")
    p.add_argument("--threads", type=int, default=2, help="threads of each process (%(default)s)")
    p.add_argument("--missing", action="store_true", help="only what has no row yet, released or of this machine")
    p.add_argument("--release", action="store_true", help="write to the released results, not to those of this machine")
    p.add_argument("--row", metavar="ENCODER:METHOD", help="measure one in this process and print its row as JSON")
    return p


def main():
    a = parser().parse_args()
    if a.steps % 2 or not 0 <= a.warmup < a.steps:
        parser().error(f"--steps {a.steps} --warmup {a.warmup}: an even number of steps, more than the warm-up has")
    if a.row:
        return print(json.dumps(measure(a.scale, *a.row.split(":"), a.steps, a.warmup, a.threads)))
    from parnb.data.scenes import scenes
    from parnb.show.tables import cost_rows
    from parnb.study.runs import make_run

    known = cost_rows(a.scale)
    known = set(zip(known.encoder, known.method))
    wanted = [(e, m) for e in a.encoders for m in a.methods or trained_by_fit()]
    todo = [w for w in wanted if not a.missing or w not in known]
    for e, m in todo:  # a wrong name fails here, and drawing scenes is not part of a method's cost
        scenes("clean", a.steps // 2 * make_run(a.scale, e, "none", m).cleaning.recipe.batch_size)
    env = os.environ | dict(OMP_NUM_THREADS=str(a.threads), PARNB_QUIET="1")
    for i, (e, m) in enumerate(todo, 1):
        print(f"{i}/{len(todo)} {e} {m} …", end=" ", flush=True)
        command = [sys.executable, __file__, "--row", f"{e}:{m}", "--scale", a.scale, "--steps", str(a.steps)]
        command += ["--warmup", str(a.warmup), "--threads", str(a.threads)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"failed:\n{done.stderr[-2000:]}")
        row = json.loads(done.stdout.splitlines()[-1])
        write_row(row, a.release)
        speed = f"{1000 * row['step_seconds']:.0f} ms a step, {row['pairs_per_second']:.0f} pairs/s"
        print(f"{speed}, {row['peak_mb']:.0f} MB", flush=True)
    if not todo:
        print("nothing is missing")


if __name__ == "__main__":
    from parnb.core import ParnbError

    try:
        main()
    except ParnbError as e:
        sys.exit(f"cost.py: {e}")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished rows are kept, --missing continues")
