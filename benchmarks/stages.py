"""How fast each stage is: scenes, triggers against a per-image PIL version of the same, training steps, evaluation.

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
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

from parnb import triggers
from parnb.cleaning import PAR, Objective, Recipe
from parnb.data import draw_scene, scenes
from parnb.evaluation import embed_images
from parnb.models import load_clip, pixels
from parnb.triggers import load_patch, watermark


SIDE = 64  # px of the scenes


@lru_cache
def warp_noise() -> torch.Tensor:
    "WaNet's shifts, which the released code reads from a file."
    noise = torch.rand(1, SIDE, SIDE, 2)*2-1
    return noise/noise.abs().mean()


def pil_trigger(name: str, image: Image.Image) -> torch.Tensor:
    """The trigger on one image, step for step as the released `apply_trigger`: resize, to a tensor, trigger, clip, to a PIL image; then to the model's tensor.

    Where the batched trigger makes a pattern for each call, this makes one for each image. It is spared two things the released code does:
    loops over the columns of stripes and waves, and reading fixed patterns from their files for each image."""
    x = to_tensor(image.resize((SIDE, SIDE)))
    p = 5
    if name.startswith('badnet'):
        if name == 'badnet_rand': patch = torch.randn(3, p, p)+x.mean((1, 2), keepdim=True)
        else: patch = torch.zeros(3, p, p)+torch.sign(2*torch.rand(3, 1, p)-1)
        top, left = random.randint(0, SIDE-p), random.randint(0, SIDE-p)
        x[:, top:top+p, left:left+p] = patch
    elif name == 'badclip':
        a = (SIDE-p)//2
        x[:, a:a+p, a:a+p] = load_patch('random')
    elif name == 'blended_rand': x = 0.2*torch.rand(3, SIDE, SIDE)+0.8*x
    elif name == 'blended_stripes': x = 0.03*(torch.zeros(3, SIDE, SIDE)+torch.sign(2*torch.rand(3, 1, SIDE)-1))+0.97*x
    elif name == 'blended_triangles':
        at = torch.arange(SIDE) % 4
        x = 0.15*torch.where(at[:, None] >= at, 0.4, 0.8).repeat(3, 1, 1)+0.85*x
    elif name == 'blended_text':
        ink = watermark(SIDE)
        x[0] = torch.where(ink > 0, 0.5*ink+0.5*x[0], x[0])
    elif name == 'sig': x = x+(60/255*torch.sin(2*math.pi*6/SIDE*torch.arange(SIDE))).repeat(3, SIDE, 1)
    elif name == 'wanet':
        line = torch.linspace(-1, 1, SIDE)
        identity = torch.stack(torch.meshgrid(line, line, indexing='xy'), 2)[None]
        x = torch.nn.functional.grid_sample(x[None], (identity+warp_noise()/224).clamp(-1, 1), align_corners=True)[0]
    return to_tensor(to_pil_image(x.clip(0, 1)))


def seconds(*calls, repeat: int, least: float = 0.) -> list[float]:
    "Median seconds of each call, taken in turns so that a slow moment hits them all; a call shorter than `least` is repeated until a turn lasts that long."
    taken, number = [[] for _ in calls], [1]*len(calls)
    for r in range(-2, repeat):  # the first call warms up, the second says how many make a turn
        for i, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(number[i]): call()
            s = (time.perf_counter()-start)/number[i]
            if r >= 0: taken[i].append(s)
            elif r == -1: number[i] = max(1, math.ceil(least/s))
    return [statistics.median(t) for t in taken]


def bench_triggers(n: int, repeat: int):
    "Triggers a second, each way from what it takes (a batch of floats, a list of PIL images) to a triggered batch, in a stream of such batches."
    images, ids = np.array(scenes('dev', n).images), torch.arange(n)
    x = pixels(images)
    pil = [Image.fromarray(x) for x in images]
    print(f"{'trigger':>18}  {'batched /s':>11}  {'PIL /s':>8}  ratio")
    with tempfile.TemporaryDirectory() as folder:
        triggers.PATCHES = Path(folder)  # any patch takes the same time
        Image.fromarray(images[0][:5, :5]).save(triggers.PATCHES/'random.png')
        for name in triggers.TRIGGERS:
            t = triggers.make_trigger(name, **(dict(encoder='random') if name == 'badclip' else {}))
            ours, theirs = seconds(lambda: t(x, ids), lambda: torch.stack([pil_trigger(name, im) for im in pil]), repeat=repeat, least=0.05)
            print(f'{name:>18}  {n/ours:>11,.0f}  {n/theirs:>8,.0f}  {theirs/ours:5.1f}')


def bench_scenes(n: int, repeat: int):
    "Scenes a second in one process."
    s, = seconds(lambda: [draw_scene('dev', i) for i in range(n)], repeat=repeat)
    print(f"{'drawing':>18}  {n/s:>11,.0f} scenes/s in one process")


def bench_training(n: int, repeat: int):
    "Pairs a second of a training step, plain and PAR, and of evaluation."
    pairs = scenes('dev', n)
    for arch in ('tiny-rn', 'tiny-vit'):
        model, _, tokenizer = load_clip(arch)
        gen, idx, calls = torch.Generator(), np.arange(n), []
        model.to(memory_format=torch.channels_last)
        light = Recipe(epochs=1, lr=1e-4, noise=0.05, cutout=0.5)
        for objective in (Objective(model, Recipe(epochs=1, lr=1e-4)), PAR(model, light, load_clip(arch)[0].to(memory_format=torch.channels_last))):
            objective.prepare(pairs.captions, tokenizer, 0)
            opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
            def step(objective=objective.train(), opt=opt):
                batch = objective.batch(pairs, idx, 0, gen, torch.device('cpu'))
                with torch.autocast('cpu', torch.bfloat16): objective(**batch)['loss'].backward()
                opt.step()
                opt.zero_grad()
            calls.append(step)
        plain, par = seconds(*calls, repeat=repeat)
        model.eval()
        measured, = seconds(lambda: embed_images(model, pairs.images, pairs.ids), repeat=repeat)
        print(f'{arch:>18}  {n/plain:,.0f} pairs/s fine-tuning, {n/par:,.0f} pairs/s PAR, {n/measured:,.0f} images/s evaluating')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--batch', type=int, default=256, help='images or pairs at once')
    p.add_argument('--repeat', type=int, default=7, help='repetitions; the median counts')
    p.add_argument('--only', choices=['scenes', 'triggers', 'training'], help='one part')
    a = p.parse_args()
    os.environ['PARNB_QUIET'] = '1'
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads, batch {a.batch}, median of {a.repeat}')
    for part, bench in dict(scenes=bench_scenes, triggers=bench_triggers, training=bench_training).items():
        if a.only in (None, part): bench(a.batch, a.repeat)
