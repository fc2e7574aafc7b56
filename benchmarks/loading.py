"""Loading: how many JPEG images a second one core decodes, resizes and crops.

    python benchmarks/loading.py [--images 200] [--width 852 --height 480] [--size 224]

The images are emoji scenes on a grid with noise, stored with the quality at which they take about 90 kB, as the pairs
of CC3M on the Hugging Face hub do. Processor time of one thread is measured, so that other work on the machine counts
little. The result is written to benchmarks/results. Nothing is asserted.
"""

import argparse
import io
import json
import platform
import time
from pathlib import Path

import numpy as np
from PIL import Image, __version__

from parnb.data.pairs import resize_and_crop
from parnb.data.scenes import scenes
from parnb.study.versions import versions

BYTES = 90_000  # of an image


def photo(rng: np.random.Generator, drawn: np.ndarray, width: int, height: int) -> bytes:
    "A JPEG file of scenes side by side, with noise."
    rows, columns = -(-height // 128), -(-width // 128)
    tiles = drawn[rng.integers(len(drawn), size=(rows, columns))].repeat(2, 2).repeat(2, 3)
    x = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * 128, columns * 128, 3)[:height, :width]
    image = Image.fromarray((x + rng.normal(0, 6, x.shape)).clip(0, 255).astype(np.uint8))

    def stored(quality):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        return out.getvalue()

    return min((stored(q) for q in range(40, 96, 5)), key=lambda b: abs(len(b) - BYTES))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--images", type=int, default=200, help="how many (%(default)s)")
    p.add_argument("--width", type=int, default=852, help="px (%(default)s)")
    p.add_argument("--height", type=int, default=480, help="px (%(default)s)")
    p.add_argument("--size", type=int, default=224, help="px of the result (%(default)s)")
    a = p.parse_args()
    rng, drawn = np.random.default_rng(0), scenes("dev", 200).images
    files = [photo(rng, drawn, a.width, a.height) for _ in range(a.images)]
    start = time.thread_time()
    for f in files:
        resize_and_crop(Image.open(io.BytesIO(f)), a.size)
    seconds = (time.thread_time() - start) / len(files)
    row = dict(
        images=len(files),
        width=a.width,
        height=a.height,
        size=a.size,
        kilobytes=round(np.mean([len(f) for f in files]) / 1e3, 1),
        milliseconds=round(1e3 * seconds, 2),
        images_per_second=round(1 / seconds, 1),
        pillow=__version__,
        machine=platform.machine(),
        processor=versions()["processor"],
    )
    print(json.dumps(row))
    path = Path(__file__).parent / "results" / f"loading-{a.size}.json"
    path.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
