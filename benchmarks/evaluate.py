"""Speed of the evaluation, against a plain one: a class folder, clean and under every trigger, and the zero-shot head.

    OMP_NUM_THREADS=1 python benchmarks/evaluate.py [--model tiny-vit] [--classes 10] [--each 10] [--out FILE]

Ours decodes the folder once, embeds it clean and under all triggers with `embed_images`, and encodes the prompts with
`zero_shot_head`, in batches cut to their longest text. The plain version goes through the folder once per trigger,
decodes again, applies the trigger image by image through PIL (`pil_trigger` of stages.py, whose patches have 5 px at
any size) and encodes one prompt at a time at full length. The two take turns; medians count. Clean accuracy must be
identical, the heads must agree within 1e-5. Random triggers are drawn differently, and PIL truncates where ours rounds,
so success rates are shown and not compared. In float32, without TF32. Needs an otherwise idle machine.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import stages
import torch
import torch.nn.functional as F
from parnb.attacks import badclip
from parnb.attacks.base import make_trigger, scaled
from parnb.core import ParnbError, write_file
from parnb.data.pairs import article
from parnb.data.scenes import NAMES, PROMPTS, draw_scene
from parnb.evaluation.embedding import embed_images, zero_shot_head
from parnb.evaluation.metrics import attack_success_rate, clean_accuracy
from parnb.models.clip import TINY, load_clip
from PIL import Image

MAX_DIFFERENCE = 1e-5
SIDES = ("ours", "plain")


def write_jpegs(folder: Path, split: str, numbers, px: int) -> tuple[list, list, list]:
    "Scenes as square JPEGs, one folder per class, enlarged and with the grain of a photo: files, captions, labels."
    files, captions, labels = [], [], []
    for i in numbers:
        x, (caption, *_), label = draw_scene(split, i)
        file, grain = folder / NAMES[label] / f"{i}.jpg", np.random.default_rng(i).normal(0, 4, (px, px, 1))
        file.parent.mkdir(exist_ok=True)
        large = np.asarray(Image.fromarray(x).resize((px, px), Image.Resampling.BICUBIC))
        Image.fromarray((large + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)
        files, captions, labels = [*files, file], [*captions, caption], [*labels, label]
    return files, captions, labels


def decode(file: Path, px: int) -> np.ndarray:
    "A square image file at the model's size: uint8 [px, px, 3]."
    with Image.open(file) as im:
        return np.asarray(im.convert("RGB").resize((px, px), Image.Resampling.BICUBIC))


def card(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.machine()


def report(about: dict, apart: dict, rows: list[dict], out: Path | None, ratio: dict | None = None, **more):
    """Print the settings, the differences of the results, and the table.

    All of it is written to `out`, a .json, or a .csv with a row for each of `rows`."""
    print(" ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in about.items()))
    print("differences:", ", ".join(f"{k} {v:.1e}" for k, v in apart.items()))
    table = pd.DataFrame([*rows, *([ratio] if ratio else [])])
    print(table.to_string(index=False, float_format="{:,.4g}".format, na_rep=""))
    if out is None:
        return
    whole = about | dict(differences=apart, rows=rows) | (dict(ratio=ratio) if ratio else {}) | more
    as_csv = out.suffix == ".csv"
    write_file(
        out, pd.DataFrame([about | r for r in rows]).to_csv(index=False) if as_csv else json.dumps(whole, indent=1)
    )


def plain_head(model: torch.nn.Module, tokenizer, names: list, device: str) -> torch.Tensor:
    "The zero-shot head, one prompt at a time and at full length: [C, D]."

    def one(text):
        return F.normalize(model.encode_text(tokenizer([text]).to(device)).float(), dim=-1)

    def mean(name):
        return torch.cat([one(t.format(a=article(name))) for t in PROMPTS]).mean(0, keepdim=True)

    return torch.cat([F.normalize(mean(n), dim=-1) for n in names]).cpu()


def plain_images(model: torch.nn.Module, preprocess, files: list, names: list, batch: int, device: str) -> dict:
    "All views, each by its own pass over the files, with the trigger on one image after the other: [N, D] each."

    def load(file, name):
        with Image.open(file) as im:
            if name == "clean":
                return preprocess(im)
            return preprocess.transforms[-1](stages.pil_trigger(name, im.convert("RGB")))

    def embed(part, name):
        x = torch.stack([load(f, name) for f in part]).to(device)
        return F.normalize(model.encode_image(x).float(), dim=-1).cpu()

    parts = [files[i : i + batch] for i in range(0, len(files), batch)]
    return {name: torch.cat([embed(p, name) for p in parts]) for name in ("clean", *names)}


def run_both(a, model, preprocess, tokenizer, device: str) -> tuple[dict, dict, np.ndarray]:
    "Both sides on the same files: part and side -> result, part and side -> median seconds; the labels."
    px, names, found = preprocess.transforms[0].size, NAMES[: a.classes], {}
    numbers = [c + len(NAMES) * k for c in range(a.classes) for k in range(a.each)]

    def keep(name, f):
        return lambda: found.update({name: f()})

    with tempfile.TemporaryDirectory() as tmp:
        files, _, labels = write_jpegs(Path(tmp), "val", numbers, a.size or px)
        stages.SIZE, badclip.PATCHES, some = px, Path(tmp), decode(files[0], px)
        for patch, width in (("random", stages.PATCH), ("scaled", scaled(16, px))):
            Image.fromarray(some[:width, :width]).save(badclip.PATCHES / f"{patch}.png")
        views = {t: make_trigger(t, **(dict(encoder="scaled") if t == "badclip" else {})) for t in a.triggers}

        def ours():
            x = np.stack([decode(f, px) for f in files])
            return embed_images(model, x, np.arange(len(files)), views, batch_size=a.batch, name="")

        calls = dict(
            head_ours=lambda: zero_shot_head(model, tokenizer, names),
            head_plain=lambda: plain_head(model, tokenizer, names, device),
            images_ours=ours,
            images_plain=lambda: plain_images(model, preprocess, files, a.triggers, a.batch, device),
        )
        taken = stages.seconds(*(keep(k, f) for k, f in calls.items()), repeat=a.repeat)
    return found, dict(zip(calls, taken)), np.array(labels)


def differences(found: dict, labels: np.ndarray) -> tuple[dict, float]:
    "How far the results of the two sides are apart, and the clean accuracy. Fails if they are not the same."
    images = {s: found[f"images_{s}"]["clean"] for s in SIDES}
    heads = {s: found[f"head_{s}"] for s in SIDES}
    accuracy = {s: clean_accuracy(images[s], heads[s], labels)["value"] for s in SIDES}
    best = [(images[s] @ heads[s].T).argmax(1) for s in SIDES]
    apart = dict(
        clean_accuracy=abs(accuracy["ours"] - accuracy["plain"]),
        predictions=(best[0] != best[1]).sum().item(),
        head=(heads["ours"] - heads["plain"]).abs().max().item(),
        embeddings=(images["ours"] - images["plain"]).abs().max().item(),
    )
    assert accuracy["ours"] == accuracy["plain"], f"clean accuracy differs: {accuracy}"
    assert apart["head"] <= MAX_DIFFERENCE, f"the heads differ by {apart['head']}"
    return apart, accuracy["ours"]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = (
        "an open_clip architecture: tiny-vit and tiny-rn with parnb's weights, others with random ones (%(default)s)"
    )
    known = list(stages.PER_IMAGE)
    p.add_argument("--model", default="tiny-vit", help=models)
    p.add_argument("--classes", type=int, default=10, help=f"folders and class names, up to {len(NAMES)} (%(default)s)")
    p.add_argument("--each", type=int, default=10, help="images in each folder (%(default)s)")
    p.add_argument("--size", type=int, help="px of the square JPEG files (the model's; others are resized to it)")
    p.add_argument("--batch", type=int, default=256, help="images at once (%(default)s)")
    p.add_argument("--triggers", nargs="+", default=known, choices=known, metavar="TRIGGER", help="which (all)")
    p.add_argument("--repeat", type=int, default=3, help="repetitions that count, after two that do not (%(default)s)")
    p.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the results: .json, or .csv with a row per part"
    )
    return p


def main():
    a = parser().parse_args()
    if not 2 <= a.classes <= len(NAMES):
        parser().error(f"--classes is from 2 to {len(NAMES)}")
    os.environ["PARNB_QUIET"], device = "1", "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model, preprocess, tokenizer = load_clip(a.model, "emoji" if a.model in TINY else None, device)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found, taken, labels = run_both(a, model, preprocess, tokenizer, device)
    apart, accuracy = differences(found, labels)

    def rate(side, trigger):
        return attack_success_rate(found[f"images_{side}"][trigger], found[f"head_{side}"], labels, 0)["value"]

    rates = pd.DataFrame([dict(trigger=t) | {s: rate(s, t) for s in SIDES} for t in a.triggers])
    rows = [dict(part=part) | {f"{s}_seconds": taken[f"{part}_{s}"] for s in SIDES} for part in ("head", "images")]
    rows.append(dict(part="both") | {f"{s}_seconds": sum(r[f"{s}_seconds"] for r in rows) for s in SIDES})
    for r in rows:
        r["ratio"] = r["plain_seconds"] / r["ours_seconds"]
    about = dict(
        model=a.model,
        images=len(labels),
        size=a.size or preprocess.transforms[0].size,
        views=1 + len(a.triggers),
        classes=a.classes,
        prompts=a.classes * len(PROMPTS),
        batch=a.batch,
        repeat=a.repeat,
        threads=torch.get_num_threads(),
        card=card(device),
        torch=torch.__version__,
        clean_accuracy=accuracy,
    )
    report(about, apart, rows, a.out, rates=rates.to_dict("records"))
    print("predicted as the first class under each trigger, of the other classes (not compared):")
    print(rates.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    try:
        main()
    except ParnbError as e:
        sys.exit(f"evaluate.py: {e}")
