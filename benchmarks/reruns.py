"""How much a result changes when the same cell is computed again, in another order of sums.

    python benchmarks/reruns.py ROW ATTACK SEED [--ways 1,1,2,1:aten=avx2]    # a row per run in results/reruns.csv
    python benchmarks/reruns.py --spread                                      # presets/board.json from all of them

A cell is a row of the protocol, an attack and a seed. It is cleaned and measured as `parnb verify` does. A way is a
number of threads and, behind colons, the instructions that PyTorch's own kernels may use (aten, ATEN_CPU_CAPABILITY)
and the way in which MKL sums (mkl, MKL_CBWR): all change the order of sums, as another processor does, and a training
amplifies the difference. The poisoned model belongs to the way, too: `shipped` (rounded to 16 bits) or `trained`; for
the seed 10, the latter needs a copy of the repository without data/pretrained/poisoned-*. More threads than cores, or
oneDNN without AVX-512, take very long. The spread is the standard deviation within cells, pooled, of rates on the scale
of `stabilised`. Runs in equal ways must be equal; ways whose results are equal sum in the same order, and count once.
Not in it: other makes of processors, GPUs.
"""

import argparse
import csv
import json
import math
import os
import sys
import time
from pathlib import Path

import pandas as pd
from parnb.core import PRESETS, PRETRAINED
from parnb.study.agreement import COMPARED, stabilised
from parnb.study.artifacts import poisoned_clip
from parnb.study.submission import make_claim, submission_row
from parnb.study.verification import recompute, run_of_cell

OUT = Path(__file__).resolve().parent / "results" / "reruns.csv"


CELL, WAY = ["row", "attack", "seed"], ["start", "threads", "aten", "mkl"]


def spread_of(table: pd.DataFrame) -> dict:
    "The spread of the reruns of several cells. Exits if equal runs differ, or if there are too few."
    table = table.fillna(dict.fromkeys(("aten", "mkl"), ""))
    if (table.groupby([*CELL, *WAY])[list(COMPARED)].nunique() > 1).any(axis=None):
        sys.exit("two runs in one way differ: they were made on two machines, or something is random")
    table = table.drop_duplicates([*CELL, *COMPARED])
    cells = table.assign(**{k: table[k].map(stabilised) for k in COMPARED}).groupby(CELL)
    if (cells.size() < 5).any():
        sys.exit("a cell has less than five different results: run it in more ways")
    freedom = int((cells.size() - 1).sum())
    variance = {k: ((cells[k].size() - 1) * cells[k].var()).sum() / freedom for k in COMPARED}
    return dict(freedom=freedom, sd={k: round(math.sqrt(v), 5) for k, v in variance.items()})


def rerun(row: str, attack: str, seed: int, ways: list[str]) -> None:
    "Compute a cell once in each way."
    claim = make_claim(submission_row(row), [attack], [seed], compute=False)
    if not claim["cells"]:
        sys.exit(f"{row}, {attack}, seed {seed} has no result to compare with")
    poisoned = poisoned_clip(run_of_cell(claim, claim["cells"][0]))  # once for all ways
    start = "shipped" if poisoned.parent == PRETRAINED else "trained"
    for way in ways:
        threads, *more = way.split(":")
        given = dict(aten="", mkl="") | dict(m.split("=") for m in more)
        settings = dict(OMP_NUM_THREADS=threads, ATEN_CPU_CAPABILITY=given["aten"], MKL_CBWR=given["mkl"])
        for k, v in settings.items():
            os.environ.pop(k, None)
            os.environ |= {k: v} if v else {}
        begun = time.perf_counter()
        found = {k: v["found"] for k, v in recompute(claim, claim["cells"][0], row).items()}
        line = dict(row=row, attack=attack, seed=seed, start=start, threads=threads, **given, **found)
        line["seconds"] = round(time.perf_counter() - begun)
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
    usual = "1,1,2,1:aten=avx2,1:mkl=COMPATIBLE,1:aten=avx2:mkl=COMPATIBLE"
    parser.add_argument("--ways", default=usual, help="THREADS[:aten=…][:mkl=…], separated by commas")
    parser.add_argument("--spread", action="store_true", help="write presets/board.json")
    args = parser.parse_args()
    if args.spread == bool(args.cell) or len(args.cell) not in (0, 3):
        parser.error("give ROW ATTACK SEED, or --spread")
    if args.cell:
        return rerun(*args.cell[:2], int(args.cell[2]), args.ways.split(","))
    table = pd.read_csv(OUT)
    about = f"Standard deviation of {len(table.drop_duplicates([*CELL, *COMPARED]))} different results of {len(table)} "
    about += f"reruns within {table.groupby(CELL).ngroups} cells, stabilised, over "
    about += "numbers of threads, sets of instructions and starts; written by benchmarks/reruns.py."
    content = dict(notes=[about], **spread_of(table))
    (PRESETS / "board.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
