"""A blind trial: how long the way from a suspicious file to a certificate takes, and where it leads.

    python benchmarks/blind_trial.py make FOLDER    # a suspect whose attack, target and seed are drawn and not shown
    python benchmarks/blind_trial.py run FOLDER     # audit, cleaning, certificate; then the truth

`make` poisons the small ResNet in the regime entrenched, with an attack, a target and a seed (100 to 999, which no
result uses) from the system's random numbers; with --on images, only attacks whose trigger is on images. FOLDER
then holds what a user has: `suspect.pt`, `pairs.csv` with the pairs of the scale tiny, and `images`, four of each
class; and `sealed.json`, which tells what was drawn; --draw names the draw of an earlier trial instead (`known` in
the table), whose model is then not blind, but the same for another way to clean. `run` executes the three commands
of the README in an empty data folder, cleaning within --budget points of accuracy or, with --calibrate, as hard as
canaries need, and opens `sealed.json` after the last of them. It measures the attack before and after the cleaning,
and appends a row to `benchmarks/results/blind_trial.csv` (--out). Needs an otherwise idle machine.
"""

import argparse
import csv
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

PARNB = str(Path(sys.executable).parent / "parnb")
OUT = Path(__file__).resolve().parent / "results" / "blind_trial.csv"
SCALE = ["--scale", "tiny"]
PER_CLASS = 4


def make(folder: Path, draw: list[str] | None, on: str | None):
    "Draw an attack, a target and a seed, or take a known draw, poison a model, and write what a user has."
    import torch
    from parnb.core import ParnbError
    from parnb.data.scenes import NAMES
    from parnb.models.clip import load_clip
    from parnb.registry import attacks, find
    from parnb.study.artifacts import poisoned_clip
    from parnb.study.runs import make_run
    from parnb.study.scale_data import data_of
    from PIL import Image

    def run_of(attack: str, target: str = "banana", seed: int = 0):
        return make_run("tiny", "rn", attack, "none", seed, target=target, regime="entrenched")

    def works(attack: str) -> bool:
        try:
            return run_of(attack, target).attack is not None
        except ParnbError:  # it has no rate in this regime, or another target
            return False

    folder.mkdir(parents=True)
    rng = np.random.default_rng(secrets.randbits(128))
    target = str(rng.choice(NAMES))
    attack = str(rng.choice([a for a in attacks() if works(a) and on in (None, find("attack", a).cls.on)]))
    drawn = dict(attack=attack, target=target, seed=int(rng.integers(100, 1000)))
    if draw:
        drawn = dict(attack=draw[0], target=draw[1], seed=int(draw[2]))
    (folder / "sealed.json").write_text(json.dumps(drawn | dict(known=bool(draw))))
    data = data_of("tiny")
    pairs, val = data.pairs("clean", 24576), data.labelled(PER_CLASS * len(NAMES))
    (folder / "pairs").mkdir()
    with open(folder / "pairs.csv", "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["filepath", "title"])
        for k, i in enumerate(rng.permutation(len(pairs))):
            Image.fromarray(pairs.images[i]).save(folder / "pairs" / f"{k:05d}.png")
            rows.writerow([f"pairs/{k:05d}.png", pairs.captions[i]])
    for k, (x, label) in enumerate(zip(val.images, val.labels)):
        place = folder / "images" / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(place / f"{k}.png")
    model = load_clip(poisoned_clip(run_of(**drawn)))[0]
    torch.save(model.state_dict(), folder / "suspect.pt")


def command(folder: Path, *words: str) -> tuple[dict, float]:
    "Run a command of parnb in the folder; its JSON or what it printed, and its seconds."
    env = os.environ | dict(PARNB_DATA=str(folder / "data"))
    begun = time.perf_counter()
    print("parnb", *words, flush=True)
    p = subprocess.run([PARNB, *words], cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    if p.returncode:
        sys.exit(p.returncode)
    return json.loads(p.stdout) if "--json" in words else dict(said=p.stdout), time.perf_counter() - begun


def rate(row: dict, name: str) -> str:
    return "{:.4f} ({:.4f} to {:.4f})".format(row[name], *row[f"{name}_ci"])


def run(folder: Path, method: str, how: list[str], template: str | None) -> dict:
    "The three commands, then the truth."
    own, suspect = ["--images", "images"], ["--model", "tiny-rn", "--checkpoint", "suspect.pt"]
    if template:
        (folder / "templates.txt").write_text(f"{template}\n")
        own += ["--templates", "templates.txt"]
    found, first = command(folder, "audit", *suspect, *own, "--out", "audit.html", "--json")
    clean = ["--pairs", "pairs.csv", *how, "--method", method, *SCALE, "--out", "cleaned"]
    second = command(folder, "clean", *suspect, *own, *clean)[1]
    both = ["suspect.pt", "cleaned", "--model", "tiny-rn", *own, "--out", "certificate.html", "--json"]
    certificate, third = command(folder, "audit", *both)

    drawn = json.loads((folder / "sealed.json").read_text())
    name, target = drawn["attack"], drawn["target"]
    known = ["--attack", name, "--target", target, *SCALE, "--regime", "entrenched", "--json"]
    before, after = (command(folder, "measure", *m, *own, *known)[0] for m in (suspect, ["--model", "cleaned"]))
    row = drawn | dict(method=method, how=" ".join(how), template=template or "")
    for detector, f in found["findings"].items():
        order = [s["target"] for s in f["suspects"]]
        row[f"{detector}_rank"] = order.index(target) + 1 if target in order else ""
        row[f"{detector}_score"] = round(f["score"], 2)
    if planted := certificate["canaries"]:
        left = [c["rate_after"] - c["without"] > planted["canary_limit"] for c in planted["canaries"]]
        row |= dict(canaries=len(left), canaries_left=sum(left))
    row["strength"] = json.loads((folder / "cleaned" / "record.json").read_text())["strength"]
    for when, m in (("before", before), ("after", after)):
        row[f"clean_accuracy_{when}"] = rate(m, "clean_accuracy")
        row[f"attack_success_rate_{when}"] = rate(m, f"attack_success_rate_{name}")
    row |= dict(n=int(after[f"n_triggered_{name}"]), untriggered_after=round(after["target_share_clean"], 4))
    row |= dict(seconds_audit=round(first), seconds_clean=round(second), seconds_certificate=round(third))
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    do = parser.add_subparsers(dest="do", required=True)
    maker, runner = (do.add_parser(name) for name in ("make", "run"))
    for p in (maker, runner):
        p.add_argument("folder", type=Path)
    maker.add_argument("--draw", nargs=3, metavar=("ATTACK", "TARGET", "SEED"), help="a known draw")
    maker.add_argument("--on", choices=("images", "texts"), help="draw only attacks whose trigger is there")
    runner.add_argument("--budget", type=float, default=3.0, help="points of accuracy that cleaning may cost")
    runner.add_argument("--calibrate", action="store_true", help="choose the strength by canaries")
    runner.add_argument("--template", help="a prompt template, instead of open_clip's 80")
    runner.add_argument("--method", default="par_aligned", help="the cleaner")
    runner.add_argument("--out", type=Path, default=OUT, help="the table that gets a row")
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.do == "make":
        return make(folder, args.draw, args.on)
    row = run(folder, args.method, ["--budget", f"{args.budget:g}"] + ["--calibrate"] * args.calibrate, args.template)
    print(json.dumps(row, indent=1))
    known = pd.read_csv(args.out, dtype=str) if args.out.exists() else pd.DataFrame()
    table = pd.concat([known, pd.DataFrame([row]).astype(str)])  # detectors are added in the course of time
    table.to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
