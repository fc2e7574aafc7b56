"""Whether the models from which rebounds start, made again, measure what the released rows say.

python benchmarks/starts.py    # those in data/artifacts; a model takes ten seconds on one core
"""

from pathlib import Path

import pandas as pd

from parnb.study.artifacts import artifact_folder
from parnb.study.protocol import ASR, CA
from parnb.study.rebound import rebound_evidence
from parnb.study.zoo import rates

OUT = Path(__file__).parent / "results" / "starts.csv"


def main():
    rows = rebound_evidence()
    rows, out = rows[rows.done & (rows.role == "model") & (rows["at"] == 0)], []
    for r in rows.to_dict("records"):
        if (folder := artifact_folder("cleaned", r["run"].cleaned_key)).exists():
            again = rates(folder, r["run"])
            known = {k: r[k] for k in ("label", "attack", "seed", "key", CA, ASR)}
            out.append(known | {f"{m}_again": round(again[m], 6) for m in (CA, ASR)})
            print(*out[-1].values(), flush=True)
    if not out:
        raise SystemExit("data/artifacts holds none of these models, so nothing was measured, and nothing is written")
    pd.DataFrame(out).to_csv(OUT, index=False)


if __name__ == "__main__":
    main()
