"""Two processes that share a batch compute what one computes, for every registered cleaner.

Weights are compared by their way: the distance between two results, divided by that from the start to the result.
AdamW turns a gradient of rounding errors, such as that of the keys' biases, into a step of full length. So another
order of sums changes the way by 0.1 to 1 %, which `micro_batches` shows within one process; other random numbers
change it by 100 %.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from parnb.models.clip import load_clip
from parnb.registry import cleaners

ROUNDING = 0.05  # of the way
AUGMENTED = dict(noise=0.1, cutout=0.5, tau=0.004, pool=24)  # where a cleaner has these parameters
ARCHITECTURES = ("tiny-vit", "tiny-rn")
SCRIPT = """
import io
import json
import os
import sys
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
import torch
from PIL import Image
from parnb.core import ARTIFACTS, ParnbError
from parnb.data.images import Images
from parnb.data.scenes import scenes
from parnb.models.clip import load_clip, save_clip
from parnb.registry import cleaners
from parnb.study.artifacts import artifact
from parnb.training import saving
from parnb.training.recipe import Compute, Recipe

augmented, architectures = json.loads(sys.argv[1])
rank, world = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
saving._WAIT = 0  # save as often as possible
known = {name: method.cls for name, method in cleaners().items()}


def train(name, architecture="tiny-vit", norm="running", epochs=2, batch=8, images=None, **options):
    load = lambda: load_clip(architecture, "emoji")[0]
    recipe = Recipe(epochs=epochs, batch_size=batch, lr=1e-3, warmup=0.0, precision="no", batch_norm=norm)
    parameters = {k: v for k, v in augmented.items() if k in known[name].model_fields}
    pairs = scenes("dev", 16)
    pairs = replace(pairs, images=images or pairs.images)
    arguments = load(), pairs, load_clip(architecture, "emoji")[2], recipe, load
    return known[name](**parameters | known[name].trial).clean(*arguments, **dict(name="") | options)


class Interrupt:
    "A monitor that ends the training when it is called for the third time."

    calls = 0

    def __call__(self, model):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return {}


def resumed(name, partial, images=(None, None)):
    "The model of a training that is interrupted and goes on; how often its monitor was called; the step saved last."
    stop, saved = Interrupt(), None
    try:
        train(name, partial=partial, save_seconds=0, monitor=stop, every=1, images=images[0])
    except KeyboardInterrupt:
        (kept,) = partial.with_suffix("").glob("*.pt")
        saved = torch.load(kept, weights_only=True)["rows"][-1]["step"]
    return train(name, partial=partial, images=images[1])[0], stop.calls, saved


def unreadable(which):
    "Images, some of which cannot be read."
    images = scenes("dev", 16).images
    return Images(lambda i: (f"{i}.png", b"" if i in which else Image.fromarray(images[i])), 16, 64, limit=1.0)


def store(key, name, make):
    "Train and store a model as an artifact; its record."

    def build(partial):
        model = make(partial)
        return lambda folder: dict(sha256=save_clip(model, folder, "tiny-vit"))

    return json.loads((artifact("cleaned", f"{key}-{name}", build, {}) / "record.json").read_text())


def warnings(architecture, norm):
    "What a training with BatchNorm on these statistics prints."
    with redirect_stderr(io.StringIO()) as err:
        train(next(iter(known)), architecture, norm, epochs=0.5)
    return [line for line in err.getvalue().splitlines() if line.startswith("WARNING")]


done = {}
for name in known:
    made = {}
    for architecture in architectures:
        made[architecture], log = train(name, architecture)
        done[name, architecture] = made[architecture].state_dict(), log.iloc[:1].to_dict("list")
        if world == 1:
            model, _ = train(name, architecture, compute=Compute(micro_batches=2))
            done[name, architecture, "reordered"] = model.state_dict()
    if world > 1:
        calls = []

        def interrupted(partial):
            model, *calls[:] = resumed(name, partial)
            return model

        whole = store("whole", name, lambda partial: made["tiny-vit"])
        done[name, "stored"] = calls, [whole, store("resumed", name, interrupted)]
if world > 1:
    try:
        train(next(iter(known)), batch=15)
    except ParnbError as e:
        done["odd"] = str(e)
    mended = unreadable([])  # only the saved state can tell what could not be read before the interruption
    resumed(next(iter(known)), Path("unreadable.pt"), (unreadable(range(0, 16, 3)), mended))
    done["unreadable"] = sorted(mended.bad)
    done["warnings"] = [warnings(*w) for w in (("tiny-vit", "batch"), ("tiny-rn", "running"), ("tiny-rn", "batch"))]
    done["hidden"] = [f.name for f in ARTIFACTS.iterdir() if f.name.startswith(".")]
torch.save(done, f"{world}-{rank}.pt")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "What one process computed, and what each of two did."
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "train.py").write_text(SCRIPT)
    env = os.environ | dict(OMP_NUM_THREADS="1", PARNB_QUIET="1", PARNB_DATA=str(folder))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for how in ([], torchrun):
        command = [sys.executable, *how, "train.py", json.dumps([AUGMENTED, ARCHITECTURES])]
        subprocess.run(command, cwd=folder, env=env, check=True, timeout=3600)
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]


def vector(state):
    return torch.cat([v.flatten().double() for v in state.values() if v.is_floating_point()])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", cleaners())
def test_two_processes_are_one(done, name, architecture):
    "The losses of the first step, and the weights at the end."
    one, two, other = (d[name, architecture] for d in done)
    assert one[1].keys() == two[1].keys()
    for k in one[1]:
        np.testing.assert_allclose(two[1][k], one[1][k], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(two[0][k], other[0][k]) for k in two[0])
    start = vector(load_clip(architecture, "emoji")[0].state_dict())
    end, reordered = vector(one[0]), vector(done[0][name, architecture, "reordered"])
    for x in (vector(two[0]), reordered):
        assert (x - end).norm() <= ROUNDING * (end - start).norm()


@pytest.mark.parametrize("name", cleaners())
def test_two_processes_resume(done, name):
    "An interrupted training ends with the same weights. The artifacts have one checksum, and name two processes."
    for (calls, saved), (whole, resumed) in (d[name, "stored"] for d in done[1:]):
        # calls of a monitor that stopped the first training, and saved steps; only a plugin may not train
        own = cleaners()[name].cls.__module__.startswith("parnb.")
        assert (calls, saved) in {(3, 1), *([] if own else [(0, None)])}
        assert whole["sha256"] == resumed["sha256"]
        assert whole["versions"]["processes"] == resumed["versions"]["processes"] == "2"


def test_no_process_forgets_what_another_could_not_read(done):
    assert [d["unreadable"] for d in done[1:]] == [[0, 3, 6, 9, 12, 15]] * 2


def test_nothing_stays_behind(done):
    "No lock, no state of an unfinished training."
    assert [d["hidden"] for d in done[1:]] == [[], []]


def test_what_differs_is_named(done):
    "A batch that does not divide is an error; BatchNorm on the statistics of a batch, a warning of the first process."
    assert all("a batch of 15 pairs does not divide among 2 processes" in d["odd"] for d in done[1:])
    vit, running, batch = done[1]["warnings"]
    assert not vit and not running and len(batch) == 1 and "set the recipe's batch_norm to 'running'" in batch[0]
    assert done[2]["warnings"] == [[], [], []]
