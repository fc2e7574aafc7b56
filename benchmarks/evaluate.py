"""How fast evaluation is, against a plain one: a class folder of images, clean and under every trigger, and the zero-shot head.

    OMP_NUM_THREADS=1 python benchmarks/evaluate.py [--model tiny-vit] [--classes 10] [--each 10] [--repeat 3] [--out FILE]

Ours decodes the folder once, embeds it clean and under all triggers with `embed_images`, and encodes the prompts with `zero_shot_head`, in batches cut to
their longest text. The plain one goes through the folder again for every trigger, decodes again, puts the trigger on image by image through PIL
(`pil_trigger` of stages.py, whose patches are 5 px at any size) and encodes one prompt at a time at full length. The two take turns; medians count.
Clean accuracy must be identical, the heads within 1e-5. Random triggers are drawn differently and PIL truncates where ours rounds, so success rates are
shown and not compared. In float32, without TF32. Wants an otherwise idle machine.
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
import torch
import torch.nn.functional as F
from PIL import Image

import stages
from parnb import triggers
from parnb.core import ParnbError, write_file
from parnb.data import NAMES, PROMPTS, article, draw_scene
from parnb.evaluation import attack_success_rate, clean_accuracy, embed_images, zero_shot_head
from parnb.models import TINY, load_clip

APART = 1e-5


def write_jpegs(folder: Path, split: str, numbers, px: int) -> tuple[list, list, list]:
    "Scenes as square JPEGs, one folder a class, enlarged and with some grain, as a photo has it: their files, captions and labels."
    files, captions, labels = [], [], []
    for i in numbers:
        x, (caption, *_), label = draw_scene(split, i)
        file, grain = folder/NAMES[label]/f'{i}.jpg', np.random.default_rng(i).normal(0, 4, (px, px, 1))
        file.parent.mkdir(exist_ok=True)
        Image.fromarray((np.asarray(Image.fromarray(x).resize((px, px), Image.Resampling.BICUBIC))+grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)
        files, captions, labels = [*files, file], [*captions, caption], [*labels, label]
    return files, captions, labels


def decode(file: Path, px: int) -> np.ndarray:
    "A square image file at the model's size: uint8 [px, px, 3]."
    with Image.open(file) as im: return np.asarray(im.convert('RGB').resize((px, px), Image.Resampling.BICUBIC))


def card(device: str) -> str: return torch.cuda.get_device_name() if device == 'cuda' else platform.machine()


def report(about: dict, apart: dict, rows: list[dict], out: Path | None, ratio: dict | None = None, **more):
    "Print what was measured, how far apart the results are and the table; write all of it to `out`, a .json, or a .csv with a row for each of `rows`."
    print(' '.join(f'{k}={v:.3g}' if isinstance(v, float) else f'{k}={v}' for k, v in about.items()))
    print('differences:', ', '.join(f'{k} {v:.1e}' for k, v in apart.items()))
    print(pd.DataFrame([*rows, *([ratio] if ratio else [])]).to_string(index=False, float_format='{:,.4g}'.format, na_rep=''))
    if out is None: return
    whole = about | dict(differences=apart, rows=rows) | (dict(ratio=ratio) if ratio else {}) | more
    write_file(out, pd.DataFrame([about | r for r in rows]).to_csv(index=False) if out.suffix == '.csv' else json.dumps(whole, indent=1))


def plain_head(model: torch.nn.Module, tokenizer, names: list, device: str) -> torch.Tensor:
    "The zero-shot head, one prompt at a time and at full length: [C, D]."
    def one(text): return F.normalize(model.encode_text(tokenizer([text]).to(device)).float(), dim=-1)
    return torch.cat([F.normalize(torch.cat([one(t.format(a=article(n))) for t in PROMPTS]).mean(0, keepdim=True), dim=-1) for n in names]).cpu()


def plain_images(model: torch.nn.Module, preprocess, files: list, names: list, batch: int, device: str) -> dict[str, torch.Tensor]:
    "All views, each by a pass of its own over the files, with the trigger on one image after the other: [N, D] each."
    def load(file, name):
        with Image.open(file) as im: return preprocess(im) if name == 'clean' else preprocess.transforms[-1](stages.pil_trigger(name, im.convert('RGB')))
    def embed(part, name): return F.normalize(model.encode_image(torch.stack([load(f, name) for f in part]).to(device)).float(), dim=-1).cpu()
    return {name: torch.cat([embed(files[i:i+batch], name) for i in range(0, len(files), batch)]) for name in ('clean', *names)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', default='tiny-vit', help='an open_clip architecture: tiny-vit and tiny-rn with the weights that come along, ViT-B-32, RN50, … with random ones (%(default)s)')
    p.add_argument('--classes', type=int, default=10, help=f'folders, and names of the head, up to {len(NAMES)} (%(default)s)')
    p.add_argument('--each', type=int, default=10, help='images in each folder (%(default)s)')
    p.add_argument('--size', type=int, help="px of the square JPEG files; the model's own by default, others are scaled to it")
    p.add_argument('--batch', type=int, default=256, help='images at once (%(default)s)')
    p.add_argument('--triggers', nargs='+', default=list(triggers.TRIGGERS), choices=list(triggers.TRIGGERS), metavar='TRIGGER', help='which (all)')
    p.add_argument('--repeat', type=int, default=3, help='repetitions of each side that count, after two that do not (%(default)s)')
    p.add_argument('--out', type=Path, metavar='FILE', help='also write the results there: .json, or .csv with a row for each part')
    a = p.parse_args()
    if not 2 <= a.classes <= len(NAMES): p.error(f'--classes is from 2 to {len(NAMES)}')
    os.environ['PARNB_QUIET'], device = '1', 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    model, preprocess, tokenizer = load_clip(a.model, 'emoji' if a.model in TINY else None, device)
    px, names, found = preprocess.transforms[0].size, NAMES[:a.classes], {}
    stages.SIDE = px
    def kept(name, f): return lambda: found.update({name: f()})
    with tempfile.TemporaryDirectory() as tmp, torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        files, _, labels = write_jpegs(Path(tmp), 'val', [c+len(NAMES)*k for c in range(a.classes) for k in range(a.each)], a.size or px)
        triggers.PATCHES, some, labels = Path(tmp), decode(files[0], px), np.array(labels)
        for patch, side in (('random', 5), ('scaled', triggers.scaled(16, px))): Image.fromarray(some[:side, :side]).save(triggers.PATCHES/f'{patch}.png')
        views = {t: triggers.make_trigger(t, **(dict(encoder='scaled') if t == 'badclip' else {})) for t in a.triggers}
        calls = dict(head_ours=lambda: zero_shot_head(model, tokenizer, names), head_plain=lambda: plain_head(model, tokenizer, names, device),
                     images_ours=lambda: embed_images(model, np.stack([decode(f, px) for f in files]), np.arange(len(files)), views, batch_size=a.batch, name=''),
                     images_plain=lambda: plain_images(model, preprocess, files, a.triggers, a.batch, device))
        taken = dict(zip(calls, stages.seconds(*(kept(k, f) for k, f in calls.items()), repeat=a.repeat)))
    sides = ('ours', 'plain')
    accuracy = {s: clean_accuracy(found[f'images_{s}']['clean'], found[f'head_{s}'], labels)['value'] for s in sides}
    best = [(found[f'images_{s}']['clean'] @ found[f'head_{s}'].T).argmax(1) for s in sides]
    apart = dict(clean_accuracy=abs(accuracy['ours']-accuracy['plain']), predictions=(best[0] != best[1]).sum().item())
    apart |= {k: (o-p).abs().max().item() for k, o, p in (('head', *(found[f'head_{s}'] for s in sides)), ('embeddings', *(found[f'images_{s}']['clean'] for s in sides)))}
    assert accuracy['ours'] == accuracy['plain'], f'clean accuracy differs: {accuracy}'
    assert apart['head'] <= APART, f"the heads differ by {apart['head']}"
    rates = pd.DataFrame([dict(trigger=t) | {s: attack_success_rate(found[f'images_{s}'][t], found[f'head_{s}'], labels, 0)['value'] for s in sides} for t in a.triggers])
    rows = [dict(part=part, ours_seconds=taken[f'{part}_ours'], plain_seconds=taken[f'{part}_plain']) for part in ('head', 'images')]
    rows.append(dict(part='both') | {f'{s}_seconds': sum(r[f'{s}_seconds'] for r in rows) for s in sides})
    for r in rows: r['ratio'] = r['plain_seconds']/r['ours_seconds']
    about = dict(model=a.model, images=len(files), size=a.size or px, views=1+len(views), classes=a.classes, prompts=a.classes*len(PROMPTS), batch=a.batch, repeat=a.repeat,
                 threads=torch.get_num_threads(), card=card(device), torch=torch.__version__, clean_accuracy=accuracy['ours'])
    report(about, apart, rows, a.out, rates=rates.to_dict('records'))
    print('predicted as the first class under each trigger, of the other classes (not compared):')
    print(rates.to_string(index=False, float_format='{:.3f}'.format))


if __name__ == '__main__':
    try: main()
    except ParnbError as e: sys.exit(f'evaluate.py: {e}')
