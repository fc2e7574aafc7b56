"""data/pretrained/poisoned-KEY: entrenched models that come with parnb, so that nobody waits for their poisoning.

`python .ci/ship.py ATTACK …` rounds the poisoned ResNet of seed 0 to float16 and writes it with its log and a record of
its clean accuracy and ASR, both measured on the rounded weights and all images of dev. Models that are missing are
trained first, which takes about ten minutes each.
"""

import argparse
import json
import shutil

from parnb.core import PRETRAINED
from parnb.evaluation.embedding import embed_images, zero_shot_head
from parnb.evaluation.metrics import attack_success_rate, clean_accuracy
from parnb.models.clip import architecture_of, image_size, load_clip, save_clip
from parnb.study.artifacts import poisoned_clip, read_record
from parnb.study.runs import Run, evaluation_seed, make_run
from parnb.study.scale_data import data_of


def rates(folder, run: Run) -> dict[str, float]:
    "Clean accuracy and ASR of a model folder on dev."
    model, _, tokenizer = load_clip(folder)
    data, p = data_of(run.scale), run.attack.poisoning
    dev = data.labelled(None, image_size(model), "dev")
    head = zero_shot_head(model, tokenizer, dev.names, data.prompts)
    seen = embed_images(model, dev.images, dev.ids, {"triggered": p.trigger()}, seed=evaluation_seed(run))
    asr = attack_success_rate(seen["triggered"], head, dev.labels, dev.names.index(p.target))
    return dict(
        clean_accuracy=clean_accuracy(seen["clean"], head, dev.labels)["value"], attack_success_rate=asr["value"]
    )


def ship(attack: str) -> None:
    "Write the model of an attack."
    run = make_run(attack=attack, method="none", regime="entrenched")
    made = poisoned_clip(run)
    folder = PRETRAINED / made.name
    if made == folder:
        raise SystemExit(f"{folder} exists: delete it to make the model again")
    model, _, tokenizer = load_clip(made)
    folder.mkdir()
    about = dict(backdoored=run.attack.poisoning.target, attack=attack, regime="entrenched")
    sha = save_clip(model, folder, architecture_of(made), half=True, tokenizer=tokenizer, **about)
    for name in ("config.json", "log.csv"):
        shutil.copy(made / name, folder)
    record = read_record(made) | rates(folder, run) | dict(sha256=sha, rounded="float16, from the weights of the log")
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(folder.name, {k: record[k] for k in ("clean_accuracy", "attack_success_rate")})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", nargs="+")
    for name in parser.parse_args().attack:
        ship(name)
