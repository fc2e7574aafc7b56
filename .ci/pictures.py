"""Pictures in notebooks have at most 100 kB: `python .ci/pictures.py` reduces the colours of larger ones."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

LIMIT = 100_000  # bytes


def smaller(png: bytes) -> bytes:
    "The same picture in 256, 128, 64 or 32 colours, the first that fits. Raises `ValueError` where none does."
    for colours in (256, 128, 64, 32):
        out = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").quantize(colours).save(out, "PNG", optimize=True)
        if out.tell() <= LIMIT:
            return out.getvalue()
    raise ValueError(f"{len(png)} bytes do not fit into {LIMIT}, even in 32 colours: draw it smaller")


def pictures(nb: dict):
    "The outputs of a notebook that hold a PNG, and its bytes."
    for cell in nb["cells"]:
        for o in cell.get("outputs", []):
            if "image/png" in (data := o.get("data", {})):
                yield data, base64.b64decode("".join(data["image/png"]))


if __name__ == "__main__":
    for path in sorted((Path(__file__).parents[1] / "nbs").rglob("*.ipynb")):
        nb = json.loads(path.read_text(encoding="utf-8"))
        large = [(data, png) for data, png in pictures(nb) if len(png) > LIMIT]
        for data, png in large:
            made = smaller(png)
            data["image/png"] = base64.b64encode(made).decode()
            print(f"{path}: {len(png) // 1000} to {len(made) // 1000} kB")
        if large:
            path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
