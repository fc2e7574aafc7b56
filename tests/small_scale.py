"A scale of a test's own: a csv of pairs, a folder of classes, and a model with random weights."

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

CLASSES = ("banana", "fire_truck")
PAIRS = 256  # to poison, and as many to clean with: two epochs of the scale tiny's recipes are four steps
PER_CLASS = 12


def make_data(folder: Path, pairs: int = 2 * PAIRS, per_class: int = PER_CLASS):
    "Write pairs.csv over 40 images, and the folder val with a folder of images for each class."
    rng = np.random.default_rng(0)

    def image(path):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(40):
        image(folder / f"{i}.png")
    rows = [(f"{i % 40}.png", f"a photo of number {i}") for i in range(pairs)]
    pd.DataFrame(rows, columns=["filepath", "title"]).to_csv(folder / "pairs.csv", index=False)
    for name in CLASSES:
        (folder / "val" / name).mkdir(parents=True)
        for i in range(per_class):
            image(folder / "val" / name / f"{i}.png")
    return folder


def make_classes(folder: Path, classes: int = 6, each: int = 4):
    "Write a folder of scenes for each of some classes."
    from parnb.data.scenes import scenes

    pairs = scenes("dev")
    for c in range(classes):
        (made := folder / pairs.names[c].replace(" ", "_")).mkdir(parents=True)
        for k in np.flatnonzero(pairs.labels == c)[:each]:
            Image.fromarray(pairs.images[int(k)]).save(made / f"{k}.png")
    return folder


def make_model(folder: Path, seed: int = 0, looks_trained: bool = True):
    "Write the architecture tiny-rn with random weights as a model folder; the doctor looks at its norms."
    from parnb.models.clip import load_clip, save_clip

    torch.manual_seed(seed)
    model = load_clip("tiny-rn")[0]
    with torch.no_grad():
        for norm in (
            m for m in model.modules() if looks_trained and "Norm" in type(m).__name__ and m.weight is not None
        ):
            norm.weight.mul_(1 + 0.01 * torch.rand_like(norm.weight))
            norm.bias.add_(0.01 * torch.rand_like(norm.bias))
    folder.mkdir(parents=True)
    save_clip(model, folder, "tiny-rn")
    return folder


def make_scale(folder: Path, name: str = "mine", **over):
    "Write a preset of this data and this model, with the recipes of the scale tiny; returns its path."
    make_data(folder)
    make_model(folder / "model")
    content = dict(
        base="tiny",
        encoder="mine",
        encoders=dict(mine=dict(model="model")),
        pairs=dict(poison=PAIRS, clean=PAIRS),
        images=2 * PER_CLASS,
        poison_recipes=dict(mine=dict(epochs=2, batch_size=128, lr=0.001, weight_decay=0.01)),
        sources=dict(pairs="pairs.csv", images="val"),
        experiments=dict(tab05_tau=[dict(method="none"), dict(method="par", tau=[1.0, 2.15])]),
    )
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content | over))
    return path


def make_twin(model, place):
    "Write a model folder with other weights that give the same numbers."
    from parnb.models.clip import architecture_of, load_clip, save_clip

    net, _, tokenizer = load_clip(model)
    next(b for name, b in net.named_buffers() if name.endswith("num_batches_tracked")).add_(1)
    place.mkdir()
    save_clip(net, place, architecture_of(model), tokenizer=tokenizer)
    return place
