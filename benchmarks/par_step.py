"""What one PAR training step costs here, against a plain formulation of the released one: time, memory, equal losses.

    OMP_NUM_THREADS=1 python benchmarks/par_step.py [--model ViT-B-32] [--batch 32] [--steps 5] [--precision bf16] [--out FILE]

The plain step is written from the description of the released one: each file decoded and transformed twice, image by image; texts at full length; the frozen
model's texts encoded anew at every step; AdamW one tensor at a time. Ours is PAR as `fit` runs it, but for the files, which `fit` finds decoded: here each is
decoded once a step. Both tokenise beforehand, use BatchNorm's running statistics, start from the same random weights and take turns; medians count. Peak memory
is of a process for each. Without augmentation, in float32, the losses must agree within 1e-5, the gradients within 1e-3 of their length. Wants an idle machine.
"""
import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms as T

from evaluate import card, decode, report, write_jpegs
from parnb.cleaning import PAR, Recipe
from parnb.core import ParnbError
from parnb.data import Pairs
from parnb.models import load_clip

SIDES, TAU, LR, APART, GRADIENT = ('ours', 'plain'), 2.15, 3e-6, 1e-5, 1e-3
PEAKS = {'H100 PCIe': 756, 'H100 NVL': 835, 'H100': 989, 'H200 NVL': 836, 'H200': 989, 'A100': 312}  # dense bf16 TFLOP/s; the first name that fits


class Side:
    "One way to make a step: `data` makes a batch of files on the device, `forward` the loss and its parts."
    def __init__(self, a, files: list, model: torch.nn.Module, **how):
        self.a, self.files, self.map = a, files, map if a.workers == 1 else ThreadPoolExecutor(a.workers).map
        groups = [dict(params=[p for p in model.parameters() if p.requires_grad and (p.ndim > 1) == big], weight_decay=1e-4*big) for big in (True, False)]
        self.opt = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-8, **how)

    def backward(self, batch: dict) -> dict[str, torch.Tensor]:
        with torch.autocast(self.a.device, torch.bfloat16, enabled=self.a.precision == 'bf16'): out = self.forward(**batch)
        out['loss'].backward()
        return out

    def step(self, k: int) -> tuple[float, float]:
        "Step k, on one of two batches: seconds until the batch is there, and of forward, backward and optimiser."
        def now():
            if self.a.device == 'cuda': torch.cuda.synchronize()
            return time.perf_counter()
        t0, batch, t1 = now(), self.data(np.arange(self.a.batch)+self.a.batch*(k % 2)), now()
        self.backward(batch)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        return t1-t0, now()-t1

    def gflop(self) -> float:
        "Of forward and backward. The counter does not know the fused attention of CPUs and of inference: without them."
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH) if self.a.device == 'cpu' else nullcontext(), FlopCounterMode(display=False) as counter: self.backward(self.data(np.arange(self.a.batch)))
        torch.backends.mha.set_fastpath_enabled(True)
        self.opt.zero_grad(set_to_none=True)
        return counter.get_total_flops()/1e9


class Ours(Side):
    "The library's step, in the arrangement of `fit`."
    def __init__(self, a, files, captions, student, reference, preprocess, tokenizer, light: bool):
        recipe = Recipe(epochs=1, batch_size=a.batch, lr=LR, batch_norm='running', precision=a.precision, **(dict(noise=0.2, cutout=0.5) if light else {}))
        n, self.px = len(files), preprocess.transforms[0].size
        self.forward = self.objective = PAR(student, recipe, reference, TAU).to(a.device).to(memory_format=torch.channels_last)
        self.pairs, t0 = Pairs(np.zeros((n, self.px, self.px, 3), np.uint8), captions, np.arange(n), np.full(n, -1)), time.perf_counter()
        self.objective.prepare(captions, tokenizer, 0)
        self.prepared = time.perf_counter()-t0
        super().__init__(a, files, self.objective.train(), fused=True)

    def data(self, idx):
        self.pairs.images[idx] = list(self.map(lambda i: decode(self.files[i], self.px), idx))
        return self.objective.batch(self.pairs, idx, 0, torch.Generator().manual_seed(0), torch.device(self.a.device))


class Plain(Side):
    "The released step. Source: paper.md 1.1 to 1.3, 1.5 no. 4 and 7."
    def __init__(self, a, files, captions, student, reference, preprocess, tokenizer, light: bool):
        self.student, self.reference, self.tokens = student.to(a.device).eval(), reference.to(a.device).requires_grad_(False), tokenizer(captions)
        *resize, norm = preprocess.transforms
        noise = T.RandomApply([T.Lambda(lambda x: (x+(0.2*torch.randn_like(x)).clamp(0, 1)).clamp(0, 1))], 0.5)
        self.view = T.Compose([*resize, noise, norm, T.RandomErasing(0.5, (0.005, 0.01), (1, 1), 0)] if light else [*resize, norm])
        super().__init__(a, files, student, foreach=False, fused=False)

    def data(self, idx):
        views = self.map(lambda i: [self.view(Image.open(self.files[i])) for _ in range(2)], idx)
        return dict(images=torch.stack([x for x, _ in views]).to(self.a.device), tokens=self.tokens[torch.from_numpy(idx)].to(self.a.device))

    def forward(self, images, tokens):
        img, txt = self.student.encode_image(images), self.student.encode_text(tokens)
        with torch.no_grad(): ref_img, ref_txt = self.reference.encode_image(images), self.reference.encode_text(tokens)
        with torch.autocast(self.a.device, enabled=False):
            img, txt, ref_img, ref_txt = (F.normalize(e.float(), dim=1) for e in (img, txt, ref_img, ref_txt))
            logits, own = self.student.logit_scale.exp().item()*img @ txt.t(), torch.arange(len(img), device=img.device)
            clip = 0.5*(F.cross_entropy(logits, own)+F.cross_entropy(logits.t(), own))
            far = [((e-r)**2).sum(1).mean() for e, r in ((img, ref_img), (txt, ref_txt))]
            pert = sum(0.5*torch.where(s > TAU, torch.zeros_like(s), s) for s in far)
        return dict(loss=clip-pert, clip=clip, pert=pert, s_img=far[0], s_txt=far[1])


def make_side(name: str, a, folder: Path, light: bool = True) -> Side:
    "A side on two batches of files; the student's weights are not the frozen model's, so that no distance is zero."
    def random_clip(seed): return torch.manual_seed(seed) and load_clip(a.model)
    (student, preprocess, tokenizer), (reference, *_) = random_clip(0), random_clip(1)
    files, captions, _ = write_jpegs(folder, 'clean', range(2*a.batch), a.size or preprocess.transforms[0].size)
    return dict(ours=Ours, plain=Plain)[name](a, files, captions, student, reference, preprocess, tokenizer, light)


def difference(a, folder: Path) -> dict[str, float]:
    "How far apart the parts of the loss are, and the gradients relative to their length, without augmentation and in float32."
    found, exact = [], argparse.Namespace(**vars(a) | dict(precision='no'))
    for name in SIDES:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            side = make_side(name, exact, folder, light=False)
            out = side.backward(side.data(np.arange(a.batch)))
        found.append(({k: v.item() for k, v in out.items()}, torch.cat([p.grad.flatten().cpu() for g in side.opt.param_groups for p in g['params'] if p.grad is not None])))
    (ours, g), (plain, h) = found
    apart = {k: abs(ours[k]-plain[k]) for k in plain} | dict(gradient=((g-h).norm()/h.norm()).item())
    assert all(v <= (GRADIENT if k == 'gradient' else APART) for k, v in apart.items()), f'the two differ by {apart}: {ours} and {plain}'
    return apart


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', default='ViT-B-32', help='an open_clip architecture, with random weights: ViT-B-32, RN50, tiny-vit, … (%(default)s)')
    p.add_argument('--batch', type=int, default=32, help='pairs a step (%(default)s)')
    p.add_argument('--size', type=int, help="px of the square JPEG files; the model's own by default, others are scaled to it")
    p.add_argument('--steps', type=int, default=5, help='steps of each side, after one that does not count (%(default)s)')
    p.add_argument('--precision', choices=['no', 'bf16'], default='no', help='of the towers; losses are float32 always (%(default)s)')
    p.add_argument('--workers', type=int, default=1, help='threads that decode, on both sides (%(default)s)')
    p.add_argument('--peak', type=float, help="the device's TFLOP/s in that precision, for the share of it; known for H100, H200 and A100 in bf16")
    p.add_argument('--out', type=Path, metavar='FILE', help='also write the results there: .json, or .csv with a row for each side')
    p.add_argument('--side', choices=SIDES, help='only print the peak memory of this side in MB, measured in this very process')
    a = p.parse_args()
    if min(a.batch-1, a.steps, a.workers) < 1: p.error('--batch is at least 2, --steps and --workers are at least 1')
    a.device, os.environ['PARNB_QUIET'] = 'cuda' if torch.cuda.is_available() else 'cpu', '1'
    with tempfile.TemporaryDirectory() as tmp:
        if a.side:
            side = make_side(a.side, a, Path(tmp))
            for k in range(2): side.step(k)
            return print((torch.cuda.max_memory_allocated() if a.device == 'cuda' else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024))/1e6)
        # first, while this process is small: on Linux a child's peak counts what its parent held when it started
        peaks = [float(subprocess.check_output([sys.executable, __file__, *sys.argv[1:], '--side', name], text=True).split()[-1]) for name in SIDES]
        apart, sides = difference(a, Path(tmp)), [make_side(name, a, Path(tmp)) for name in SIDES]
        gflop, taken = [s.gflop() for s in sides], np.array([[s.step(k) for s in sides] for k in range(-1, a.steps)][1:])  # the latter [steps, sides, (data, train)]
    length, peak = sides[1].tokens.argmax(-1)+1, a.peak or next((v for k, v in PEAKS.items() if a.precision == 'bf16' and all(w in card(a.device) for w in k.split())), None)
    (data, train), step = np.median(taken, 0).T.tolist(), np.median(taken.sum(2), 0).tolist()
    rows = [dict(side=s, data_seconds=data[i], train_seconds=train[i], step_seconds=step[i], pairs_per_second=a.batch/step[i], peak_mb=peaks[i], gflop=gflop[i]) for i, s in enumerate(SIDES)]
    ratio = dict(side='plain/ours') | {k: v/rows[0][k] for k, v in rows[1].items() if k != 'side'}
    if peak: [r.update(peak_share_train=r['gflop']/r['train_seconds']/peak/1e3, peak_share_step=r['gflop']/r['step_seconds']/peak/1e3) for r in rows]
    about = dict(model=a.model, batch=a.batch, size=a.size or sides[0].px, precision=a.precision, steps=a.steps, workers=a.workers, threads=torch.get_num_threads(), card=card(a.device), torch=torch.__version__,
                 peak_tflops=peak, tokens_mean=length.float().mean().item(), tokens_longest=int(length.max()), tokens_full=sides[1].tokens.shape[1], prepare_seconds=sides[0].prepared)
    report(about, apart, rows, a.out, ratio)


if __name__ == '__main__':
    try: main()
    except ParnbError as e: sys.exit(f'par_step.py: {e}')
    except subprocess.CalledProcessError as e: sys.exit(e.returncode)  # it has said why
