"Peak memory of opening and reading shards, as the number of pairs grows: each size in a process of its own."
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

def write(folder: Path, count: int, per_shard: int = 50_000):
    "Shards of small pictures that say nothing, under captions that all differ."
    picture = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture, 'PNG')
    picture = picture.getvalue()
    for k in range(0, count, per_shard):
        with tarfile.open(folder/f'{k//per_shard:05d}.tar', 'w') as tar:
            for i in range(k, min(k+per_shard, count)):
                for ext, data in (('png', picture), ('txt', f'a photo of the thing that has the number {i} in this set'.encode())):
                    m = tarfile.TarInfo(f'{i:08d}.{ext}')
                    m.size = len(data)
                    tar.addfile(m, io.BytesIO(data))

def read(folder: Path, batches: int, size: int):
    "Open, tokenise all captions, read some batches; print what it took. Runs in a process of its own."
    from parnb.cleaning import tokenise
    from parnb.models import tiny_tokenizer
    from parnb.sources import open_source
    start, t0 = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    pairs = open_source(folder, 32)
    t1 = time.perf_counter()
    tokens = tokenise(pairs.captions, tiny_tokenizer())
    t2, rng = time.perf_counter(), np.random.default_rng(0)
    for _ in range(batches):
        idx = np.sort(rng.choice(len(pairs), size, replace=False))
        assert len(pairs.images[idx]) == len(tokens[idx]) == size
    anonymous = next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))
    print(json.dumps(dict(pairs=len(pairs), mb_before=start/1e3, mb_peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3, mb_own=anonymous/1e3, seconds_index=t1-t0, seconds_tokens=t2-t1, seconds_batches=time.perf_counter()-t2)))

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--pairs', type=int, nargs='+', default=[10_000, 100_000, 1_000_000], help='how many pairs, each')
    p.add_argument('--batches', type=int, default=100, help='batches to read')
    p.add_argument('--size', type=int, default=256, help='pairs a batch')
    p.add_argument('--read', type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.read: return read(a.read, a.batches, a.size)
    print(f"{'pairs':>10} {'peak MB':>8} {'own MB':>8} {'index s':>8} {'tokens s':>9} {'batches s':>10}   (own: without what is mapped from files)")
    for n in a.pairs:
        with tempfile.TemporaryDirectory() as d:
            write(Path(d), n)
            out = subprocess.run([sys.executable, __file__, '--read', d, '--batches', str(a.batches), '--size', str(a.size)], capture_output=True, text=True, check=True, env=os.environ | dict(PARNB_DATA=f'{d}/data'))
        r = json.loads(out.stdout.splitlines()[-1])
        print(f"{r['pairs']:10,d} {r['mb_peak']:8.0f} {r['mb_own']:8.0f} {r['seconds_index']:8.1f} {r['seconds_tokens']:9.1f} {r['seconds_batches']:10.1f}", flush=True)

if __name__ == '__main__': main()
