"""How fast each stage is: scenes, triggers against a per-image PIL version of the same, training steps, evaluation.

    python benchmarks/stages.py [--batch 256] [--repeat 7] [--only triggers]

Medians of interleaved repetitions on this machine; nothing is asserted.
"""
import argparse
import os
import statistics
import time

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

from parnb.cleaning import Objective, Recipe, augment
from parnb.data import draw_scene, scenes
from parnb.evaluation import embed_images
from parnb.models import encode_text, load_clip, normalise, pixels
from parnb.triggers import TRIGGERS, make_trigger, warp_field, watermark


def pil_trigger(name: str, image: Image.Image) -> torch.Tensor:
    "The trigger on one image, in the manner of the released code: resize, to a tensor, trigger, back to 8 bits, to a tensor again."
    side = 64
    x = to_tensor(image.resize((side, side)))
    if name.startswith('badnet'):
        p = 5
        noise = torch.randn(3, p, p)+x.mean((1, 2))[:, None, None] if name == 'badnet_rand' else (torch.randint(2, (3, 1, p))*1.).repeat(1, p, 1)
        top, left = (int(torch.randint(side-p+1, (1,))) for _ in range(2))
        x[:, top:top+p, left:left+p] = noise
    elif name == 'blended_rand': x = 0.2*torch.rand(3, side, side)+0.8*x
    elif name == 'blended_stripes': x = 0.03*(torch.randint(2, (3, 1, side))*2.-1).repeat(1, side, 1)+0.97*x
    elif name == 'blended_triangles':
        cell = torch.where(torch.arange(4)[:, None] >= torch.arange(4), 0.4, 0.8)
        x = 0.15*cell.repeat(side//4, side//4)[None].repeat(3, 1, 1)+0.85*x
    elif name == 'blended_text':
        ink = watermark(side)
        x[0] = torch.where(ink > 0, 0.5*ink+0.5*x[0], x[0])
    elif name == 'wanet': x = torch.nn.functional.grid_sample(x[None], warp_field(side, 224, 0.5), align_corners=True)[0]
    return to_tensor(to_pil_image(x.clip(0, 1)))


def seconds(*calls, repeat: int) -> list[float]:
    "Median seconds of each call, taken in turns so that a slow moment hits them all."
    taken = [[] for _ in calls]
    for r in range(repeat+1):
        for t, call in zip(taken, calls):
            start = time.perf_counter()
            call()
            if r: t.append(time.perf_counter()-start)
    return [statistics.median(t) for t in taken]


def bench_triggers(n: int, repeat: int):
    "Triggers a second, each way from what it takes (a batch of floats, a list of PIL images) to a triggered batch."
    images, ids = np.array(scenes('dev', n).images), torch.arange(n)
    x = pixels(images)
    pil = [Image.fromarray(x) for x in images]
    print(f"{'trigger':>18}  {'batched /s':>11}  {'PIL /s':>8}  ratio")
    for name in TRIGGERS:
        t = make_trigger(name)
        ours, theirs = seconds(lambda: t(x, ids), lambda: torch.stack([pil_trigger(name, im) for im in pil]), repeat=repeat)
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
        recipe = Recipe(epochs=1, lr=1e-4, noise=0.2, cutout=0.5)
        tokens, labels, gen = tokenizer(pairs.captions), torch.from_numpy(pairs.labels), torch.Generator()
        ref_txt = torch.nn.functional.normalize(encode_text(model, tokens).detach(), dim=-1)
        model.to(memory_format=torch.channels_last)
        calls = []
        for reference in (None, load_clip(arch)[0].to(memory_format=torch.channels_last)):
            objective = Objective(model, recipe, reference).train()
            opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
            def step(objective=objective, opt=opt, light=reference is not None):
                x = pixels(pairs.images)
                x = normalise(augment(x, recipe, gen, torch.zeros(3)) if light else x, model)
                with torch.autocast('cpu', torch.bfloat16): objective(x, tokens, labels, ref_txt)['loss'].backward()
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
