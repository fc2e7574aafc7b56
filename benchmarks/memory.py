"Peak memory of opening and reading shards, as the number of pairs grows; each size is measured in its own process."

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

HEADINGS = dict(pairs=10, peak_MB=8, own_MB=8, index_s=8, tokens_s=9, batches_s=10)  # and the widths of their columns


def write(folder: Path, count: int, per_shard: int = 50_000):
    "Shards of small black images, each with a different caption."
    picture = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture, "PNG")
    picture = picture.getvalue()
    for k in range(0, count, per_shard):
        with tarfile.open(folder / f"{k // per_shard:05d}.tar", "w") as tar:
            for i in range(k, min(k + per_shard, count)):
                caption = f"a photo of the thing that has the number {i} in this set".encode()
                for ext, data in (("png", picture), ("txt", caption)):
                    m = tarfile.TarInfo(f"{i:08d}.{ext}")
                    m.size = len(data)
                    tar.addfile(m, io.BytesIO(data))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def read(folder: Path, batches: int, size: int):
    "Open shards, tokenise all captions, read some batches; print time and memory. Runs in its own process."
    from parnb.data.corpora import open_source
    from parnb.models.clip import tiny_tokenizer
    from parnb.training.objective import tokenise

    before, t0 = peak_mb(), time.perf_counter()
    pairs = open_source(folder, 32)
    t1 = time.perf_counter()
    tokens = tokenise(pairs.captions, tiny_tokenizer())
    t2, rng = time.perf_counter(), np.random.default_rng(0)
    for _ in range(batches):
        idx = np.sort(rng.choice(len(pairs), size, replace=False))
        assert len(pairs.images[idx]) == len(tokens[idx]) == size
    with open("/proc/self/status") as status:
        anonymous = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    seconds = dict(index_s=t1 - t0, tokens_s=t2 - t1, batches_s=time.perf_counter() - t2)
    print(json.dumps(dict(pairs=len(pairs), before_MB=before, peak_MB=peak_mb(), own_MB=anonymous / 1e3) | seconds))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of pairs")
    p.add_argument("--batches", type=int, default=100, help="batches to read")
    p.add_argument("--size", type=int, default=256, help="pairs in a batch")
    p.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.read:
        return read(a.read, a.batches, a.size)
    headings = " ".join(f"{k.replace('_', ' '):>{w}}" for k, w in HEADINGS.items())
    print(f"{headings}   (own: without memory-mapped files)")
    for n in a.pairs:
        with tempfile.TemporaryDirectory() as d:
            write(Path(d), n)
            command = [sys.executable, __file__, "--read", d, "--batches", str(a.batches), "--size", str(a.size)]
            env = os.environ | dict(PARNB_DATA=f"{d}/data")
            out = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
        r = json.loads(out.splitlines()[-1])
        cells = [f"{r[k]:{w}.{1 if k.endswith('_s') else 0}f}" for k, w in list(HEADINGS.items())[1:]]
        print(f"{r['pairs']:10,d}", *cells, flush=True)


if __name__ == "__main__":
    main()
