"""How much a result changes when the same cell is computed again with another number of threads.

    python benchmarks/reruns.py ROW ATTACK SEED [--threads 1,1,2,3,4,5]    # a row per run in results/reruns.csv
    python benchmarks/reruns.py --tolerance                                # presets/board.json from all of them

A cell is a row of the protocol, an attack and a seed. It is cleaned and measured as `parnb verify` does, from the same
poisoned model. Sums over another number of threads are taken in another order, and a training amplifies the difference.
The tolerance of a recomputed cell is what two runs of one cell differ by in 95 % of cases: 1.96 √2 s, where s² is the
variance of the reruns within cells, pooled. Runs with equal numbers of threads count once: they are equal.
"""

import argparse
import csv
import json
import math
import os
import time
from pathlib import Path

import pandas as pd
from parnb.core import PRESETS
from parnb.study.protocol import ASR, CA
from parnb.study.submission import make_claim, recompute, submission_row

OUT = Path(__file__).resolve().parent / "results" / "reruns.csv"


def tolerance_of(table: pd.DataFrame) -> dict[str, float]:
    "The tolerance from the reruns of several cells."
    cells = table.drop_duplicates(["row", "attack", "seed", "threads"]).groupby(["row", "attack", "seed"])
    freedom = (cells.size() - 1).sum()
    spread = {k: ((cells[k].size() - 1) * cells[k].var()).sum() / freedom for k in (CA, ASR)}
    return {k: round(1.96 * math.sqrt(2 * v), 4) for k, v in spread.items()}


def rerun(row: str, attack: str, seed: int, threads: list[int]) -> None:
    "Compute a cell once for each number of threads."
    claim = make_claim(submission_row(row), [attack], [seed], compute=False)
    for n in threads:
        os.environ["OMP_NUM_THREADS"], begun = str(n), time.perf_counter()
        found = {k: v["found"] for k, v in recompute(claim, claim["cells"][0], row).items()}
        line = dict(row=row, attack=attack, seed=seed, threads=n, **found, seconds=round(time.perf_counter() - begun))
        print(line, flush=True)
        fresh = not OUT.exists()
        with open(OUT, "a", newline="") as f:
            rows = csv.DictWriter(f, line, lineterminator="\n")
            if fresh:
                rows.writeheader()
            rows.writerow(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cell", nargs="*", metavar="ROW ATTACK SEED")
    parser.add_argument("--threads", default="1,1,2,3,4,5", help="numbers of threads, separated by commas")
    parser.add_argument("--tolerance", action="store_true", help="write presets/board.json")
    args = parser.parse_args()
    if args.tolerance == bool(args.cell) or len(args.cell) not in (0, 3):
        parser.error("give ROW ATTACK SEED, or --tolerance")
    if args.cell:
        return rerun(*args.cell[:2], int(args.cell[2]), [int(n) for n in args.threads.split(",")])
    content = dict(notes=["Written by benchmarks/reruns.py."], tolerance=tolerance_of(pd.read_csv(OUT)))
    (PRESETS / "board.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
