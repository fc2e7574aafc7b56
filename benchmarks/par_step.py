"""Cost of one PAR training step, against a plain formulation of the released one: time, memory, equal losses.

    OMP_NUM_THREADS=1 python benchmarks/par_step.py [--model ViT-B-32] [--batch 32] [--steps 5] [--precision bf16]

The plain step is written from the description of the released one: each file decoded and transformed twice, image by
image; texts at full length; the frozen model's texts encoded again at every step; AdamW one tensor at a time. Ours is
PAR as `fit` runs it, except that `fit` gets decoded images, and here each file is decoded once a step. Both tokenise
beforehand, use BatchNorm's running statistics, start from the same random weights and take turns; medians count. Peak
memory is measured in a process for each side. Without augmentation, in float32, the losses must agree within 1e-5, the
gradients within 1e-3 of their length. Needs an otherwise idle machine.
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
from evaluate import SIDES, card, decode, report, write_jpegs
from parnb.cleaners.par import PARObjective
from parnb.core import ParnbError
from parnb.data.pairs import Pairs
from parnb.models.clip import load_clip
from parnb.training.recipe import Recipe
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms as T

TAU, LR, MAX_DIFFERENCE, MAX_GRADIENT_DIFFERENCE = 2.15, 3e-6, 1e-5, 1e-3
# Dense bf16 TFLOP/s; the first name that fits counts
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200 NVL": 836, "H200": 989, "A100": 312}
RSS_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


class Side:
    "One way to make a step: `data` makes a batch of files on the device, `forward` the loss and its parts."

    def __init__(self, a, files: list, model: torch.nn.Module, **how):
        self.a, self.files, self.map = a, files, map if a.workers == 1 else ThreadPoolExecutor(a.workers).map
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups = [dict(params=matrices, weight_decay=1e-4), dict(params=vectors, weight_decay=0.0)]
        self.opt = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-8, **how)

    def backward(self, batch: dict) -> dict[str, torch.Tensor]:
        with torch.autocast(self.a.device, torch.bfloat16, enabled=self.a.precision == "bf16"):
            out = self.forward(**batch)
        out["loss"].backward()
        return out

    def step(self, k: int) -> tuple[float, float]:
        "Step k, on one of two batches: seconds to make the batch, and of forward, backward and optimiser."

        def now():
            if self.a.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter()

        t0, batch, t1 = now(), self.data(np.arange(self.a.batch) + self.a.batch * (k % 2)), now()
        self.backward(batch)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        return t1 - t0, now() - t1

    def gflop(self) -> float:
        "Of forward and backward. The counter does not know the fused attention of CPUs and of inference: without them."
        torch.backends.mha.set_fastpath_enabled(False)
        plain_attention = sdpa_kernel(SDPBackend.MATH) if self.a.device == "cpu" else nullcontext()
        with plain_attention, FlopCounterMode(display=False) as counter:
            self.backward(self.data(np.arange(self.a.batch)))
        torch.backends.mha.set_fastpath_enabled(True)
        self.opt.zero_grad(set_to_none=True)
        return counter.get_total_flops() / 1e9


class Ours(Side):
    "The library's step, arranged as in `fit`."

    def __init__(self, a, files, captions, student, reference, preprocess, tokenizer, light: bool):
        recipe = Recipe(epochs=1, batch_size=a.batch, lr=LR, batch_norm="running", precision=a.precision)
        n, self.px = len(files), preprocess.transforms[0].size
        augmentation = dict(noise=0.2, cutout=0.5) if light else {}
        objective = PARObjective(student, recipe, reference, TAU, **augmentation)
        self.forward = self.objective = objective.to(a.device).to(memory_format=torch.channels_last)
        self.pairs = Pairs(np.zeros((n, self.px, self.px, 3), np.uint8), captions, np.arange(n), np.full(n, -1))
        start = time.perf_counter()
        self.objective.prepare(captions, tokenizer, 0)
        self.prepared = time.perf_counter() - start
        super().__init__(a, files, self.objective.train(), fused=True)

    def data(self, idx):
        self.pairs.images[idx] = list(self.map(lambda i: decode(self.files[i], self.px), idx))
        gen = torch.Generator().manual_seed(0)
        return self.objective.batch(self.pairs, idx, 0, gen, torch.device(self.a.device))


class Plain(Side):
    "The released step. Source: the papers and their code to 1.3, 1.5 no. 4 and 7."

    def __init__(self, a, files, captions, student, reference, preprocess, tokenizer, light: bool):
        self.student, self.tokens = student.to(a.device).eval(), tokenizer(captions)
        self.reference = reference.to(a.device).requires_grad_(False)
        *resize, norm = preprocess.transforms
        noise = T.RandomApply([T.Lambda(lambda x: (x + (0.2 * torch.randn_like(x)).clamp(0, 1)).clamp(0, 1))], 0.5)
        cutout = T.RandomErasing(0.5, (0.005, 0.01), (1, 1), 0)
        self.view = T.Compose([*resize, noise, norm, cutout] if light else [*resize, norm])
        super().__init__(a, files, student, foreach=False, fused=False)

    def data(self, idx):
        views = self.map(lambda i: [self.view(Image.open(self.files[i])) for _ in range(2)], idx)
        images, tokens = torch.stack([x for x, _ in views]), self.tokens[torch.from_numpy(idx)]
        return dict(images=images.to(self.a.device), tokens=tokens.to(self.a.device))

    def forward(self, images, tokens):
        img, txt = self.student.encode_image(images), self.student.encode_text(tokens)
        with torch.no_grad():
            ref_img, ref_txt = self.reference.encode_image(images), self.reference.encode_text(tokens)
        with torch.autocast(self.a.device, enabled=False):
            img, txt, ref_img, ref_txt = (F.normalize(e.float(), dim=1) for e in (img, txt, ref_img, ref_txt))
            logits = self.student.logit_scale.exp().item() * img @ txt.t()
            own = torch.arange(len(img), device=img.device)
            clip = 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own))
            far = [((e - r) ** 2).sum(1).mean() for e, r in ((img, ref_img), (txt, ref_txt))]
            pert = sum(0.5 * torch.where(s > TAU, torch.zeros_like(s), s) for s in far)
        return dict(loss=clip - pert, clip=clip, pert=pert, s_img=far[0], s_txt=far[1])


def make_side(name: str, a, folder: Path, light: bool = True) -> Side:
    "A side on two batches of files; student and frozen model have different weights, so that no distance is zero."

    def random_clip(seed):
        torch.manual_seed(seed)
        return load_clip(a.model)

    (student, preprocess, tokenizer), (reference, *_) = random_clip(0), random_clip(1)
    px = a.size or preprocess.transforms[0].size
    files, captions, _ = write_jpegs(folder, "clean", range(2 * a.batch), px)
    side = dict(ours=Ours, plain=Plain)[name]
    return side(a, files, captions, student, reference, preprocess, tokenizer, light)


def difference(a, folder: Path) -> dict[str, float]:
    "Differences of the parts of the loss and, relative to its length, of the gradient; in float32, no augmentation."
    found, exact = [], argparse.Namespace(**vars(a) | dict(precision="no"))
    for name in SIDES:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            side = make_side(name, exact, folder, light=False)
            out = side.backward(side.data(np.arange(a.batch)))
        gradients = [p.grad.flatten().cpu() for g in side.opt.param_groups for p in g["params"] if p.grad is not None]
        found.append(({k: v.item() for k, v in out.items()}, torch.cat(gradients)))
    (ours, g), (plain, h) = found
    apart = {k: abs(ours[k] - plain[k]) for k in plain} | dict(gradient=((g - h).norm() / h.norm()).item())
    limits = dict.fromkeys(apart, MAX_DIFFERENCE) | dict(gradient=MAX_GRADIENT_DIFFERENCE)
    assert all(apart[k] <= limits[k] for k in apart), f"the two differ by {apart}: {ours} and {plain}"
    return apart


def peak_memory(a, folder: Path) -> float:
    "Peak memory of one side in MB, measured in this process."
    side = make_side(a.side, a, folder)
    for k in range(2):
        side.step(k)
    cuda = a.device == "cuda"
    used = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_BYTES
    return used / 1e6


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    peak = "TFLOP/s of the device in that precision, for the share of it; known for H100, H200 and A100 in bf16"
    p.add_argument("--model", default="ViT-B-32", help="an open_clip architecture, with random weights (%(default)s)")
    p.add_argument("--batch", type=int, default=32, help="pairs a step (%(default)s)")
    p.add_argument("--size", type=int, help="px of the square JPEG files (the model's; others are resized to it)")
    p.add_argument(
        "--steps", type=int, default=5, help="steps of each side, after one that does not count (%(default)s)"
    )
    p.add_argument("--precision", choices=["no", "bf16"], default="no", help="of the towers; losses are float32")
    p.add_argument("--workers", type=int, default=1, help="threads that decode, on both sides (%(default)s)")
    p.add_argument("--peak", type=float, help=peak)
    p.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the results: .json, or .csv with a row per side"
    )
    p.add_argument("--side", choices=SIDES, help="only print the peak memory of this side in MB")
    return p


def main():
    a = parser().parse_args()
    if min(a.batch - 1, a.steps, a.workers) < 1:
        parser().error("--batch is at least 2, --steps and --workers are at least 1")
    a.device, os.environ["PARNB_QUIET"] = "cuda" if torch.cuda.is_available() else "cpu", "1"
    with tempfile.TemporaryDirectory() as tmp:
        if a.side:
            return print(peak_memory(a, Path(tmp)))
        # first, while this process is small: on Linux a child's peak counts what its parent held when it started
        command = [sys.executable, __file__, *sys.argv[1:], "--side"]
        peaks = [float(subprocess.check_output([*command, s], text=True).split()[-1]) for s in SIDES]
        apart, sides = difference(a, Path(tmp)), [make_side(name, a, Path(tmp)) for name in SIDES]
        gflop = [s.gflop() for s in sides]
        taken = np.array([[s.step(k) for s in sides] for k in range(-1, a.steps)][1:])  # [steps, sides, (data, train)]
    (data, train), step = np.median(taken, 0).T.tolist(), np.median(taken.sum(2), 0).tolist()
    rows = [
        dict(
            side=s,
            data_seconds=data[i],
            train_seconds=train[i],
            step_seconds=step[i],
            pairs_per_second=a.batch / step[i],
            peak_mb=peaks[i],
            gflop=gflop[i],
        )
        for i, s in enumerate(SIDES)
    ]
    ratio = dict(side="plain/ours") | {k: v / rows[0][k] for k, v in rows[1].items() if k != "side"}
    fits = (v for k, v in PEAKS.items() if a.precision == "bf16" and all(w in card(a.device) for w in k.split()))
    peak, length = a.peak or next(fits, None), sides[1].tokens.argmax(-1) + 1
    for r in rows if peak else ():
        r["peak_share_train"] = r["gflop"] / r["train_seconds"] / peak / 1e3
        r["peak_share_step"] = r["gflop"] / r["step_seconds"] / peak / 1e3
    about = dict(
        model=a.model,
        batch=a.batch,
        size=a.size or sides[0].px,
        precision=a.precision,
        steps=a.steps,
        workers=a.workers,
        threads=torch.get_num_threads(),
        card=card(a.device),
        torch=torch.__version__,
        peak_tflops=peak,
        tokens_mean=length.float().mean().item(),
        tokens_longest=int(length.max()),
        tokens_full=sides[1].tokens.shape[1],
        prepare_seconds=sides[0].prepared,
    )
    report(about, apart, rows, a.out, ratio)


if __name__ == "__main__":
    try:
        main()
    except ParnbError as e:
        sys.exit(f"par_step.py: {e}")
    except subprocess.CalledProcessError as e:
        sys.exit(e.returncode)  # the process has printed why
