"""A rehearsal of the scale `paper`: poisoning, cleaning, measuring and drawing with full-size architectures, resolution
and file formats, but with random weights, generated pictures and two steps a training.

    python benchmarks/rehearsal.py FOLDER [--pairs 20000] [--encoders RN50 ViT-B-32] [--images 64]

Writes into FOLDER shards named as CC3M's, 1,000 classes named by WordNet ids, captions in Karpathy's format, random
checkpoints and a preset with the base `paper`; then runs the commands that a user of real data runs, without a network
where `unshare` may take it away. Each step's time and memory go to steps.csv in FOLDER, and a
step that was done there is not repeated; once all are done, to benchmarks/results/rehearsal.csv. A step that fails is
shown with its output, and the exit code is 1. Not rehearsed: notebooks 00, 04, 05 and 06, synthetic pairs, Slurm (which
tests/test_slurm.py runs), and arithmetic on a GPU.
"""

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "rehearsal.csv"
PARNB = [str(Path(sys.executable).parent / "parnb")]
SHARD = 5000  # pairs
# takes the network away, where that is possible
ALONE = ["unshare", "-rn"] if shutil.which("unshare") and not subprocess.call(["unshare", "-rn", "true"]) else []
ARCHITECTURES = {"RN50": "RN50-quickgelu", "ViT-B-32": "ViT-B-32-quickgelu", "ViT-L-14-336": "ViT-L-14-336-quickgelu"}


def jpeg(x: np.ndarray) -> bytes:
    "A picture of 480 × 360 px from a scene of 64 px."
    out = io.BytesIO()
    Image.fromarray(x).resize((480, 360), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def make_shards(folder: Path, pairs: int):
    "Shards as pixparse/cc3m-wds has them: KEY.jpg, KEY.txt, KEY.json."
    from parnb.data.scenes import scenes

    drawn = scenes("clean", min(pairs, 2000))
    folder.mkdir()
    for first in range(0, pairs, SHARD):
        with tarfile.open(folder / f"cc3m-train-{first // SHARD:04d}.tar", "w") as tar:
            for i in range(first, min(first + SHARD, pairs)):
                k = i % len(drawn)
                caption = f"{drawn.captions[k]} number {i}"
                about = json.dumps(dict(key=f"{i:09d}", caption=caption, width=480, height=360)).encode()
                for end, content in (("jpg", jpeg(drawn.images[k])), ("txt", caption.encode()), ("json", about)):
                    info = tarfile.TarInfo(f"{i:09d}.{end}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def make_classes(folder: Path):
    "One picture for each class of ImageNet-1k, in folders named by WordNet ids; banana is n07753592."
    from parnb.data.scenes import scenes
    from timm.data import ImageNetInfo

    drawn = scenes("dev", 1000)
    for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names()):
        (place := folder / name).mkdir(parents=True)
        (place / "ILSVRC2012_val_00000001.JPEG").write_bytes(jpeg(drawn.images[i]))


def make_captions(folder: Path, images: int = 20):
    "Pictures with five captions each, in Karpathy's format."
    from parnb.data.scenes import scenes

    drawn, entries = scenes("retrieval", images), []
    (place := folder / "val2014").mkdir(parents=True)
    for i in range(len(drawn)):
        name = f"COCO_val2014_{i:012d}.jpg"
        (place / name).write_bytes(jpeg(drawn.images[i]))
        sentences = [dict(raw=c) for c in drawn.captions[i]]
        entries.append(dict(filename=name, filepath="val2014", split="test", sentences=sentences))
    (folder / "dataset_coco.json").write_text(json.dumps(dict(images=entries)))


def make_checkpoint(path: Path, architecture: str):
    "Random weights, with norms that look trained, as a file of state_dict."
    import open_clip
    import torch

    torch.manual_seed(0)
    model = open_clip.create_model(architecture, force_image_size=None)
    for m in model.modules():
        if "Norm" in type(m).__name__ and getattr(m, "weight", None) is not None:
            torch.nn.init.uniform_(m.weight, 0.9, 1.1)
    torch.save(model.state_dict(), path)


def make_preset(folder: Path, pairs: int, images: int, encoders: list[str]) -> Path:
    "A preset with the base `paper` whose trainings have two steps of eight pairs."
    short, clean = dict(batch_size=8, warmup=0), 32
    content = dict(
        base="paper",
        encoder=encoders[0],
        encoders={e: dict(model=ARCHITECTURES[e], pretrained=f"{e}.pt") for e in encoders},
        sources=dict(
            pairs=f"shards/cc3m-train-{{0000..{(pairs - 1) // SHARD:04d}}}.tar",
            images="val",
            captions=dict(annotations="captions/dataset_coco.json", folder="captions/val2014"),
        ),
        templates=["a photo of a {}.", "a drawing of a {}."],
        pairs=dict(poison=pairs - clean, clean=clean),
        images=images,
        poison_recipes=dict(default=dict(epochs=16 / (pairs - clean), lr=1e-5, **short)),
        cleaners={m: dict(recipe=dict(epochs=0.5, **short)) for m in trained_by_fit()},
        experiments=dict(
            tab01_main=[dict(attack=["badnet_stripes", "blended_text"], method=["none", "ft", "par"])],
            fig1_outcomes="tab01_main",
        ),
    )
    (path := folder / "rehearsal.json").write_text(json.dumps(content, indent=1))
    return path


def trained_by_fit() -> list[str]:
    "The cleaners that have a recipe at the scale `paper`."
    from parnb.registry import methods_at, recipe

    return [m for m in methods_at("cleaner", "paper") if recipe("cleaner", m, "paper", "RN50").get("recipe")]


def run(
    command: list[str], folder: Path
) -> tuple[int, str, float, float]:  # code, output, s, MB of the largest process
    "Run a command without a network, if that is possible here."
    env = os.environ | dict(PARNB_DATA=str(folder / "data"), PARNB_FIGURES=str(folder / "figures"), HF_HUB_OFFLINE="1")
    start = time.monotonic()
    p = subprocess.Popen([*ALONE, *command], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = p.stdout.read().decode(errors="replace")
    _, status, used = os.wait4(p.pid, 0)
    return os.waitstatus_to_exitcode(status), out, time.monotonic() - start, used.ru_maxrss / 1e3


def steps(preset: str, encoders: list[str], folder: Path) -> dict[str, list[str]]:
    "What a user of real data runs, by name."
    out = {}
    for e in encoders:
        at = ["-p", "scale", preset, "-p", "encoder", e]
        model = ["--model", ARCHITECTURES[e], "--checkpoint", f"{e}.pt"]
        mine = [*model, "--images", "val", "--images-count", "64"]
        out |= {
            f"{e}: doctor": [*PARNB, "doctor", *model, "--pairs", "shards/cc3m-train-0000.tar", "--images", "val"],
            f"{e}: 01_poison_clip": [*PARNB, "run", "01_poison_clip", *at],
            f"{e}: 02_clean_baselines": [*PARNB, "run", "02_clean_baselines", *at],
            f"{e}: 03_par_clean": [*PARNB, "run", "03_par_clean", *at],
            f"{e}: measure": [*PARNB, "measure", *mine],
        }
    out["reproduce, dry run"] = [*PARNB, "reproduce", "--scale", preset, "--dry-run"]
    out["reproduce"] = [*PARNB, "reproduce", "--scale", preset, "--only", "tab01", "--only", "fig1", "--jobs", "1"]
    return out


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path, help="for data and results, several GB")
    p.add_argument("--pairs", type=int, default=20_000, help="pairs in shards (%(default)s)")
    p.add_argument("--images", type=int, default=64, help="labelled images of the 1,000 to measure on (%(default)s)")
    p.add_argument("--encoders", nargs="+", default=["RN50", "ViT-B-32"], choices=ARCHITECTURES, help="%(default)s")
    a = p.parse_args()
    folder = a.folder.resolve()
    makers = dict(shards=lambda at: make_shards(at, a.pairs), val=make_classes, captions=make_captions)
    makers |= {f"{e}.pt": lambda at, e=e: make_checkpoint(at, ARCHITECTURES[e]) for e in a.encoders}
    for name, make in makers.items():
        if not (folder / name).exists():
            print(f"making {name} …", flush=True)
            (partial := folder / f".partial-{name}").parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(folder / name)
    preset = make_preset(folder, a.pairs, a.images, a.encoders)
    done, failed = folder / "steps.csv", 0
    rows = list(csv.DictReader(done.open())) if done.exists() else []
    for name, command in steps(preset.name, a.encoders, folder).items():
        if any(r["step"] == name for r in rows):
            continue
        code, out, seconds, mb = run(command, folder)
        print(f"{name}: {'ok' if code == 0 else f'FAILED ({code})'}, {seconds:.0f} s, {mb:.0f} MB", flush=True)
        (folder / f"{name.replace(': ', '_').replace(', ', '_')}.log").write_text(out)
        if code:
            failed += 1
            print(out[-3000:])
            continue
        rows.append(dict(step=name, seconds=round(seconds), peak_mb=round(mb), network="no" if ALONE else "yes"))
        with done.open("w", newline="") as f:
            writer = csv.DictWriter(f, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if not failed:
        shutil.copy(done, RESULTS)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
