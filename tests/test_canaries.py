"`parnb clean --calibrate` and `--budget` on a model, pairs and images of your own."

import json
import re
import shutil

import pytest
from processes import PARNB, env, fails_with, parnb, python, several
from small_scale import make_classes, make_data

from parnb.core import PRETRAINED
from parnb.data.scenes import scenes

SUSPECT = PRETRAINED / "poisoned-05dddcfe09f1"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "512 pairs, two classes of noise, and eight classes of scenes."
    folder = make_data(tmp_path_factory.mktemp("data"), per_class=2)
    make_classes(folder / "classes", 8)
    return folder


def command(data, place, *more):
    "In its smallest form."
    own = ["--model", SUSPECT, "--scale", "tiny", "--pairs", data / "pairs.csv", "--out", place / "cleaned"]
    return [*map(str, ["clean", *own, "--smoke", "--method", "ft", *more])]


def clean(data, place, *more):
    return parnb(place, *command(data, place, *more))


def test_the_record_names_the_canaries_and_nothing_is_computed_twice(data, tmp_path):
    options = ["--images", data / "classes", "--calibrate", "--budget", "100"]
    done = clean(data, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "cleaned" / "record.json").read_text())
    assert len(record["canaries"]) == 3 and record["strength"].startswith("lr ")
    names = {c["target"] for c in record["canaries"]}
    assert len(names) == 3 and names <= set(scenes("dev").names[:8])
    for c in record["canaries"]:
        assert 0 <= c["low"] <= c["rate_after"] <= c["high"] <= 1 and c["n"] == 28 and 0 <= c["without"] <= 1
    assert record["gone"] == all(c["rate_after"] - c["without"] <= record["canary_limit"] for c in record["canaries"])
    assert "planted: " in done.stderr and "cleaned at lr" in done.stderr
    planted = [*tmp_path.glob("artifacts/planted-*")]  # a backdoored copy says that it is one
    assert planted and all("backdoored" in (p / "README.md").read_text() for p in planted)
    made = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("record.json")}
    again = clean(data, tmp_path, *options)
    assert again.returncode == 0 and again.stdout == done.stdout, again.stderr
    assert made == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("record.json")}
    assert not [*tmp_path.rglob(".partial*"), *tmp_path.rglob("*.lock")]
    quick = ["--images", data / "classes", "--detector", "concentration:restarts=1,steps=2", "--json"]
    done = parnb(tmp_path, "audit", SUSPECT, tmp_path / "cleaned", *quick)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # the certificate finds the canaries by itself
    assert found["canaries"]["canaries"] == record["canaries"] and found["assurance"]["of"] == 30
    assert found["canaries"]["tested_here"]


def test_the_strongest_cleaning_within_a_budget(data, tmp_path):
    shutil.copytree(data / "classes", tmp_path / "classes")
    next((tmp_path / "classes").rglob("*.png")).write_bytes(b"no image")  # of 32; it does not count
    options = ["--images", tmp_path / "classes", "--budget", "100"]  # whatever it costs
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", PARNB]
    done = python(env(tmp_path), *together, *command(data, tmp_path, *options), real=True)  # one of them tells
    assert done.returncode == 0, done.stderr
    found = r"lr (\S+) costs (-?[\d.]+) points of accuracy \((-?[\d.]+) to (-?[\d.]+); 31 images\)"
    costs = [[float(x) for x in c] for c in re.findall(found, done.stderr)]
    lrs = [lr for lr, *_ in costs]
    assert lrs == sorted(lrs) and all(low <= cost <= high for _, cost, low, high in costs)
    assert f"lr {lrs[-1]:g} is the highest tried, and a higher one may fit, too" in done.stderr
    assert "planted" not in done.stderr and "small ResNets" not in done.stderr  # a trial says nothing of other models
    record = json.loads((tmp_path / "cleaned" / "record.json").read_text())
    assert (record["strength"], record["budget"], record["lost"]["n"]) == (f"lr {lrs[-1]:g}", 100, 31)
    made = {p: p.stat().st_mtime_ns for p in tmp_path.glob("artifacts/cleaned-*/record.json")}
    assert len(made) == len(costs)
    again = clean(data, tmp_path, *options)
    assert again.returncode == 0 and again.stdout == done.stdout, again.stderr
    assert made == {p: p.stat().st_mtime_ns for p in tmp_path.glob("artifacts/cleaned-*/record.json")}
    fails_with(clean(data, tmp_path, *options[:-1], "99"), "is not empty", "the new model is kept in")


MISTAKES = [
    (["--calibrate"], "--images"),
    (["--budget", "3"], "--budget needs --images"),
    (["--budget", "3", "--budget", "4", "--images", "val"], "--budget is given twice"),
    (["--budget", "3", "--images", ""], "--images is empty"),
    (["--budget", "3", "--images", "val", "--lr", "1e-3"], "--lr has no effect with --budget"),
    (["--calibrate", "--images", "val"], "6 classes or more, there are 2"),
    (["--calibrate", "--images", "val", "--lr", "1e-3"], "--lr has no effect with --calibrate"),
    (["--calibrate", "--images", "val", "--recipe", "lr=1e-3"], "--recipe lr has no effect"),
    (["--margin", "1"], "--margin belongs to --calibrate"),
    (["--suspected", "banana"], "--suspected belongs to --calibrate"),
    (["--calibrate", "--images", "val", "--suspected", "bananna"], "did you mean 'banana'"),
    (["--names", "names.txt"], "--names needs --images"),
]


@pytest.fixture(scope="module")
def mistakes(data, tmp_path_factory):
    "What each of the commands above did; no model was made."
    place = tmp_path_factory.mktemp("mistakes")
    commands = [command(data, place, *(data / "val" if g == "val" else g for g in given)) for given, _ in MISTAKES]
    done = several(commands, env(place))
    assert not (place / "cleaned").exists()
    return done


@pytest.mark.parametrize("k", range(len(MISTAKES)), ids=[" ".join(given) for given, _ in MISTAKES])
def test_what_cannot_be_calibrated_is_one_sentence(mistakes, k):
    fails_with(mistakes[k], MISTAKES[k][1])
    assert mistakes[k].stderr.strip().splitlines()[-1].startswith("parnb: ")
