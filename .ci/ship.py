"""data/pretrained: the models that come with parnb, so that nobody waits for their training.

`python .ci/ship.py` writes those of presets/zoo.json that are missing: rounded to float16, with the log of their
training and the numbers that were measured on the rounded weights. Models that are not on this machine are trained
first, which takes about ten minutes each. `--measure` measures all of them again.
"""

import argparse
import json
import shutil

from parnb.core import PRETRAINED, new_folder
from parnb.models.clip import architecture_of, load_clip, model_card, save_clip
from parnb.study.artifacts import read_record
from parnb.study.zoo import ZooModel, rates, zoo
from safetensors import safe_open


def metadata(folder) -> dict[str, str]:
    "What the weights file of a model says of it."
    with safe_open(folder / "model.safetensors", "pt") as f:
        return {k: v for k, v in f.metadata().items() if k not in ("format", "architecture")}


def round_and_copy(m: ZooModel) -> dict:
    "Write the weights and the log of a model; its record."
    made = m.make()
    about = metadata(made)
    model, _, tokenizer = load_clip(made)
    if m.run.regime:
        about["regime"] = m.run.regime
    with new_folder(PRETRAINED / made.name) as folder:  # whole or not at all: other processes read it at once
        sha = save_clip(model, folder, architecture_of(made), half=True, tokenizer=tokenizer, **about)
        for name in ("config.json", "log.csv"):
            shutil.copy(made / name, folder)
        record = read_record(made) | dict(sha256=sha, rounded="float16, from the weights of the log")
        (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def ship(m: ZooModel, again: bool) -> None:
    "Write a model that is missing, and its numbers if it has none."
    record = read_record(m.folder) if m.shipped else round_and_copy(m)
    if again or "measured" not in record:
        record["measured"] = rates(m.folder, m.run)
        (m.folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        about = dict(architecture=architecture_of(m.folder), sha256=record["sha256"], **metadata(m.folder))
        text = model_card(about, name=m.name, license="cc-by-sa-4.0")
        (m.folder / "README.md").write_text(text, encoding="utf-8")
        print(m.name, m.folder.name, {k: round(v, 4) for k, v in record["measured"].items()}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure again what was measured")
    again = parser.parse_args().measure
    for m in zoo():
        ship(m, again)
