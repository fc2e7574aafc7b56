"""Speed of each stage: scenes, triggers against a per-image PIL version of the same, training steps, evaluation.

    OMP_NUM_THREADS=1 python benchmarks/stages.py [--batch 256] [--repeat 7] [--only triggers]

Medians of interleaved repetitions on this machine; nothing is asserted.
"""

import argparse
import math
import os
import random
import statistics
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from parnb.attacks import badclip
from parnb.attacks.badclip import load_patch
from parnb.attacks.base import make_trigger
from parnb.attacks.blended import watermark
from parnb.cleaners.par import PAR
from parnb.data.scenes import draw_scene, scenes
from parnb.evaluation.embedding import embed_images
from parnb.models.clip import load_clip, pixels
from parnb.training.objective import Objective
from parnb.training.recipe import Recipe
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

SIZE = 64  # px of the scenes
PATCH = 5  # px


@lru_cache
def warp_noise() -> torch.Tensor:
    "WaNet's shifts, which the released code reads from a file."
    noise = torch.rand(1, SIZE, SIZE, 2) * 2 - 1
    return noise / noise.abs().mean()


def add_patch(x: torch.Tensor, patch: torch.Tensor) -> torch.Tensor:
    "Overwrite a random square."
    top, left = random.randint(0, SIZE - PATCH), random.randint(0, SIZE - PATCH)
    x[:, top : top + PATCH, left : left + PATCH] = patch
    return x


def add_centre(x: torch.Tensor) -> torch.Tensor:
    a = (SIZE - PATCH) // 2
    x[:, a : a + PATCH, a : a + PATCH] = load_patch("random")
    return x


def add_triangles(x: torch.Tensor) -> torch.Tensor:
    at = torch.arange(SIZE) % 4
    return 0.15 * torch.where(at[:, None] >= at, 0.4, 0.8).repeat(3, 1, 1) + 0.85 * x


def add_text(x: torch.Tensor) -> torch.Tensor:
    ink = watermark(SIZE)
    x[0] = torch.where(ink > 0, 0.5 * ink + 0.5 * x[0], x[0])
    return x


def warp(x: torch.Tensor) -> torch.Tensor:
    line = torch.linspace(-1, 1, SIZE)
    identity = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2)[None]
    grid = (identity + warp_noise() / 224).clamp(-1, 1)
    return torch.nn.functional.grid_sample(x[None], grid, align_corners=True)[0]


def stripes(height: int, width: int) -> torch.Tensor:
    return torch.zeros(3, height, width) + torch.sign(2 * torch.rand(3, 1, width) - 1)


# name -> the trigger on one image float [3, SIZE, SIZE]
PER_IMAGE = dict(
    badnet_rand=lambda x: add_patch(x, torch.randn(3, PATCH, PATCH) + x.mean((1, 2), keepdim=True)),
    badnet_stripes=lambda x: add_patch(x, stripes(PATCH, PATCH)),
    badclip=add_centre,
    blended_rand=lambda x: 0.2 * torch.rand(3, SIZE, SIZE) + 0.8 * x,
    blended_stripes=lambda x: 0.03 * stripes(SIZE, SIZE) + 0.97 * x,
    blended_triangles=add_triangles,
    blended_text=add_text,
    sig=lambda x: x + (60 / 255 * torch.sin(2 * math.pi * 6 / SIZE * torch.arange(SIZE))).repeat(3, SIZE, 1),
    wanet=warp,
)


def pil_trigger(name: str, image: Image.Image) -> torch.Tensor:
    """The trigger on one image, step by step as in the released `apply_trigger`.

    Resize, to a tensor, trigger, clip, to a PIL image, then to the model's tensor. While the batched trigger makes a
    pattern for each call, this makes one for each image. Two slow parts of the released code are left out: loops over
    the columns of stripes and waves, and reading fixed patterns from their files for each image."""
    x = PER_IMAGE[name](to_tensor(image.resize((SIZE, SIZE))))
    return to_tensor(to_pil_image(x.clip(0, 1)))


def seconds(*calls, repeat: int, least: float = 0.0) -> list[float]:
    """Median seconds of each call, in turns, so that a slow moment affects them all.

    A call shorter than `least` is repeated until a turn takes that long."""
    taken, number = [[] for _ in calls], [1] * len(calls)
    for r in range(-2, repeat):  # the first call warms up, the second decides how many calls make a turn
        for i, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(number[i]):
                call()
            s = (time.perf_counter() - start) / number[i]
            if r >= 0:
                taken[i].append(s)
            elif r == -1:
                number[i] = max(1, math.ceil(least / s))
    return [statistics.median(t) for t in taken]


def bench_triggers(n: int, repeat: int):
    "Triggers per second in a stream of batches, from a batch of floats or a list of PIL images to a triggered batch."
    images, ids = np.array(scenes("dev", n).images), torch.arange(n)
    x, pil = pixels(images), [Image.fromarray(x) for x in images]
    print(f"{'trigger':>18}  {'batched /s':>11}  {'PIL /s':>8}  ratio")
    with tempfile.TemporaryDirectory() as folder:
        badclip.PATCHES = Path(folder)  # any patch takes the same time
        Image.fromarray(images[0][:PATCH, :PATCH]).save(badclip.PATCHES / "random.png")
        for name in PER_IMAGE:
            t = make_trigger(name, **(dict(encoder="random") if name == "badclip" else {}))
            calls = (lambda: t(x, ids), lambda: torch.stack([pil_trigger(name, im) for im in pil]))
            ours, theirs = seconds(*calls, repeat=repeat, least=0.05)
            print(f"{name:>18}  {n / ours:>11,.0f}  {n / theirs:>8,.0f}  {theirs / ours:5.1f}")


def bench_scenes(n: int, repeat: int):
    "Scenes per second in one process."
    (s,) = seconds(lambda: [draw_scene("dev", i) for i in range(n)], repeat=repeat)
    print(f"{'drawing':>18}  {n / s:>11,.0f} scenes/s in one process")


def training_step(objective, pairs, tokenizer):
    "A function that makes one training step on a batch of pairs."
    objective.prepare(pairs.captions, tokenizer, 0)
    objective.train()
    gen, idx = torch.Generator(), np.arange(len(pairs))
    opt = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], fused=True)

    def step():
        batch = objective.batch(pairs, idx, 0, gen, torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16):
            objective(**batch)["loss"].backward()
        opt.step()
        opt.zero_grad()

    return step


def bench_training(n: int, repeat: int):
    "Pairs per second of a training step, plain and PAR, and images per second of an evaluation."
    pairs, recipe = scenes("dev", n), Recipe(epochs=1, lr=1e-4)
    for arch in ("tiny-rn", "tiny-vit"):
        model, _, tokenizer = load_clip(arch)
        model.to(memory_format=torch.channels_last)

        def reference():
            return load_clip(arch)[0].to(memory_format=torch.channels_last)

        light = PAR(noise=0.05, cutout=0.5)
        steps = [
            training_step(o, pairs, tokenizer)
            for o in (Objective(model, recipe), light.objective(model, recipe, reference))
        ]
        plain, par = seconds(*steps, repeat=repeat)
        model.eval()
        (measured,) = seconds(lambda: embed_images(model, pairs.images, pairs.ids), repeat=repeat)
        speeds = (
            f"{n / plain:,.0f} pairs/s fine-tuning, {n / par:,.0f} pairs/s PAR, {n / measured:,.0f} images/s evaluating"
        )
        print(f"{arch:>18}  {speeds}")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--batch", type=int, default=256, help="images or pairs at once")
    p.add_argument("--repeat", type=int, default=7, help="repetitions; the median counts")
    p.add_argument("--only", choices=["scenes", "triggers", "training"], help="one part")
    a = p.parse_args()
    os.environ["PARNB_QUIET"] = "1"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {a.batch}, median of {a.repeat}")
    for part, bench in dict(scenes=bench_scenes, triggers=bench_triggers, training=bench_training).items():
        if a.only in (None, part):
            bench(a.batch, a.repeat)
