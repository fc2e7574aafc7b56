"A model of your own is a run like any other, and no option of a command is ignored."

import json
import re
from pathlib import Path

import pytest
from command_line import CommandLine
from small_scale import CLASSES, make_data, make_model, make_scale
from processes import env, parnb, python

from parnb.core import PRETRAINED, ParnbError
from parnb.registry import cleaners
from parnb.study import own
from parnb.study.results import results

KEY = results("tiny", "released").index[0]
# a value for each option that takes one; it differs from the default
VALUES = {
    "--scale": "small",
    "--encoder": "vit",
    "--seed": "3",
    "--model": "tiny-vit",
    "--checkpoint": "other.pt",
    "--attack": "sig",
    "--target": "anchor",  # a class of the scale and of the folder
    "--rate": "0.25",
    "--regime": "entrenched",
    "--count": "7",
    "--mode": "label_consistent",
    "--strength": "alpha=0.4",
    "--against": "ft",
    "--against-checkpoint": "other.pt",
    "--poison-recipe": "lr=0.01",
    "--method": "cleanclip",
    "--clean-count": "600",
    "--recipe": "weight_decay=0.5",
    "--epochs": "3",
    "--batch-size": "32",
    "--lr": "1e-4",
    "--budget": "7",
    "--margin": "1",
    "--suspected": "banana",
    "--precision": "no",
    "--pairs": "synthetic",
    "--image-column": "title",  # the key of a model needs one that is there
    "--caption-column": "text",
    "--root": "elsewhere",
    "--rebound-lr": "1e-3",
    "--unreadable": "0.5",
    "--micro-batches": "2",
    "--out": "elsewhere",
    "--shards": "shards",
    "--pool": "99",
    "--lam": "0.7",
    "--tau": "1.3",
    "--noise": "0.3",
    "--cutout": "0.3",
    "--decay": "0.8",
    "--beta": "0.5",
    "--candidates": "99",
    "--suspects": "3",
    "--quick": "9",
    "--thorough": "30",
    "--trigger-share": "0.3",
    "--trigger-count": "3",
    "--trigger-step": "0.2",
    "--word-share": "0.5",
    "--word-count": "8",
    "--patch": "20",
    "--amplitude": "0.02",
    "--shift": "8",
    "--pruned-share": "0.25",
    "--rho": "0.7",
    "--epsilon": "4",
    "--search-steps": "2",
    "--alpha": "0.7",
    "--synonyms": "wordnet",
    "--key": KEY,
    "--rebound": "301",
    "--head": "linear",
    "--images": "other_images",
    "--captions": "captions.json",
    "--captions-images": "captioned",
    "--names": "names.txt",
    "--templates": "templates.txt",
    "--images-count": "5",
    "--images-batch": "7",
    "--triggered-resize": "squash",
    "--detector": "density:k=3",
    "--flag": "val",
    "--pairs-count": "60",
    "--drop": "0.3",
}
OWN = ["--model", "tiny-rn", "--checkpoint", "emoji"]
OWN_PAIRS = [*OWN, "--pairs", "pairs.csv", "--out", "out"]
TWO = [PRETRAINED / "poisoned-05dddcfe09f1", PRETRAINED / "tiny-rn"]
FURTHER = ["--pairs", "pairs.csv", "--rebound-lr", "1e-4"]
SITUATIONS = {
    "poison": [[], ["--smoke"], ["--mode", "label_consistent"], OWN_PAIRS],
    "clean": [
        [],
        ["--smoke"],
        ["--method", "ft"],
        ["--attack", "none"],
        ["--calibrate"],
        OWN_PAIRS,
        [*OWN_PAIRS, "--method", "ft"],
        [*OWN_PAIRS, "--images", "val", "--calibrate"],
        [*OWN_PAIRS, "--images", "val", "--budget", "2"],
    ],
    "measure": [
        ["--rebound", "300"],
        [*OWN, "--scale", "tiny", "--images", "val", "--pairs", "pairs.csv", "--rebound", "300"],
        [],
        ["--smoke"],
        ["--method", "none"],
        ["--attack", "none"],
        ["--attack", "none", "--method", "none"],
        ["--key", KEY],
        [*OWN, "--images", "val"],
        [*OWN, "--images", "val", "--attack", "blended_rand"],
    ],
    "audit": [
        [*OWN, "--images", "val"],
        [*OWN, "--images", "val", "--against", "tiny-vit", "--against-checkpoint", "emoji"],
        [*OWN, "--scale", "tiny"],
        [*OWN, "--scale", "tiny", "--pairs", "real"],
        [*OWN, "--images", "val", "--pairs", "pairs.csv"],
        [*OWN, "--images", "val", "--flag", "."],
        [*TWO, "--images", "val"],
        [*TWO, "--images", "val", *FURTHER],
        [*TWO, "--scale", "tiny"],
        [*TWO, "--scale", "tiny", "--pairs", "real"],
        [*TWO, "--scale", "tiny", *FURTHER],
    ],
    "filter": [[*OWN_PAIRS, "--detector", "clip_similarity"]],
    "doctor": [OWN, [*OWN, "--pairs", "pairs.csv"], [*OWN, "--images", "val"]],
}


@pytest.fixture(scope="module")
def line():
    return CommandLine()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A working folder with pairs, classes and two text files; presets of your own models are written there too."
    make_data(tmp_path, pairs=2, per_class=1)
    (tmp_path / "val" / CLASSES[1]).rename(tmp_path / "val" / "anchor")  # so that both scales have the target
    (tmp_path / "names.txt").write_text(f"{CLASSES[0]}\nanchor\n")
    (tmp_path / "templates.txt").write_text("a sketch of a {}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "DATA", tmp_path)
    return tmp_path


def is_named(option: str, message: str) -> bool:
    "Whether a message names an option or its setting, not in passing."
    name = option.removeprefix("--")
    names = f"({name}|{name.replace('-', '_')})"
    ways = [rf"--{names}(?![\w-])", rf"['`\"]{names}['`\"]", rf"\b{names} ?=", f"unknown {names} ", f"^{names} belongs"]
    ways += [r"\bthe (scale|encoder) \w"] if name in ("scale", "encoder") else []
    return any(re.search(way, message) for way in ways)


CASES = [(command, typed) for command, situations in SITUATIONS.items() for typed in situations]


@pytest.mark.parametrize("command, typed", CASES, ids=[" ".join([c, *map(str, t)]) for c, t in CASES])
def test_each_option_acts_or_is_refused(line, folder, command, typed):
    "An option changes what a command does, or one sentence names it."
    before, ignored = line.digest(command, *typed), {}
    for option in line.options(command):
        if option in typed:
            continue
        value = [] if option in line.flags(command) else [VALUES[option]]
        try:
            if line.digest(command, *typed, option, *value) == before:
                ignored[option] = "no effect"
        except ParnbError as e:
            if not is_named(option, str(e)):
                ignored[option] = f"refused without being named: {e}"
    assert not ignored, "\n".join(f"{k}: {v}" for k, v in ignored.items())


@pytest.mark.parametrize("method", [name for name, m in cleaners().items() if m.cls.model_fields])
def test_each_parameter_of_a_cleaner_acts(line, method):
    "With the cleaner that it belongs to; above, most are refused."
    fields = cleaners()[method].cls.model_fields
    before = line.digest("clean", "--method", method)
    for option in (f"--{name.replace('_', '-')}" for name in fields):
        assert line.digest("clean", "--method", method, option, VALUES[option]) != before, option


def test_every_option_has_a_value_to_try(line):
    "A new option needs a line in VALUES."
    known = {o for c in SITUATIONS for o in line.options(c) if o not in line.flags(c)}
    assert known == VALUES.keys()


def test_options_of_training_act_without_a_model_of_your_own(line):
    "They once had no effect without --model."
    run = line("clean", "--lr", "1e-4", "--epochs", "0.5", "--batch-size", "32", "--precision", "no")["run"]
    recipe = run.cleaning.recipe
    assert (recipe.lr, recipe.epochs, recipe.batch_size, recipe.precision) == (1e-4, 0.5, 32, "no")
    effects = line("clean", "--micro-batches", "2", "--checkpointing", "--compile")
    assert effects["compute"] == dict(micro_batches=2, checkpointing=True, compile=True)
    assert effects["run"] == line("clean")["run"]  # they change no number


@pytest.mark.parametrize("command", ["clean", "measure"])
def test_parameters_of_cleaners_are_options_wherever_the_command_stands(command):
    "Also behind the options of every command."
    assert "--tau" in CommandLine("-q", "--verbose", command).options(command)


# a checkpoint cleaned by the command line, and the same run in Python, in another data folder
IN_PYTHON = """
import json, sys
from parnb.study.artifacts import cleaned_clip, read_record
from parnb.study.own import own_scale
from parnb.study.runs import make_run
checkpoint, pairs = sys.argv[1:]
scale = own_scale("tiny-rn", checkpoint, pairs=pairs, base="tiny")
run = make_run(scale, attack="none", method="par", tau=1.9, recipe=dict(epochs=1, batch_size=64))
folder = cleaned_clip(run)
assert read_record(folder)["key"] == run.cleaned_key
print(folder)
"""


def test_a_foreign_checkpoint_is_a_run_like_any_other(tmp_path):
    "`parnb clean --model` and `cleaned_clip(make_run(own_scale(…)))` make the same artifact, to the last bit."
    import torch
    from safetensors.torch import load_file

    data, model = make_data(tmp_path / "own", pairs=128), make_model(tmp_path / "random")
    torch.save(dict(state_dict=load_file(model / "model.safetensors")), checkpoint := tmp_path / "foreign.pt")
    pairs, out = data / "pairs.csv", tmp_path / "cleaned"
    options = ["--model", "tiny-rn", "--checkpoint", checkpoint, "--scale", "tiny", "--pairs", pairs, "--out", out]
    options += ["--method", "par", "--tau", "1.9", "--epochs", "1", "--batch-size", "64"]
    p = parnb(tmp_path / "a", "clean", *map(str, options))
    assert p.returncode == 0 and p.stdout.strip() == str(out), p.stderr
    p = python(env(tmp_path / "b"), "-c", IN_PYTHON, checkpoint, pairs)
    assert p.returncode == 0, p.stderr
    in_python = Path(p.stdout.splitlines()[-1])
    # the weights, not the files: safetensors writes its metadata in any order
    weights = [load_file(folder / "model.safetensors") for folder in (out, in_python)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(a, weights[1][k]) for k, a in weights[0].items())
    assert [f.name for f in (tmp_path / "a" / "artifacts").glob("cleaned-*")] == [in_python.name]


@pytest.fixture(scope="module")
def scale(tmp_path_factory):
    "A small scale made of a csv, a folder of classes, and random weights; the data folder beside it."
    folder = tmp_path_factory.mktemp("scale")
    return make_scale(folder / "own"), folder / "data"


NOTEBOOKS = {
    "00_pretrain_clip": [],
    "01_poison_clip": ["attack", "badnet_stripes"],
    "02_clean_baselines": ["attack", "badnet_stripes"],
    "03_par_clean": ["attack", "badnet_stripes"],
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_run_notebooks_work_at_a_scale_of_your_own(scale, name):
    "Each notebook that takes a scale uses its pairs, its images, its model and its recipes, and no emoji scenes."
    from papermill.inspection import inspect_notebook

    from parnb.study.notebooks import find_notebook

    path, (preset, data) = find_notebook(name), scale
    known, given = inspect_notebook(str(path)), ["smoke", "True", *NOTEBOOKS[name]]
    if "scale" in known:
        given += ["scale", str(preset)]
    options = [w for n, v in zip(given[::2], given[1::2]) for w in ("-p", n, v)]
    out = data.parent / f"{name}.ipynb"
    p = parnb(data, "run", name, *options, "--out", str(out))
    assert p.returncode == 0, p.stderr
    outputs = [o for c in json.loads(out.read_text())["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert "accuracy" in p.stdout
    if "scale" in known:
        assert not list((data / "cache").glob("scenes-*")), "scenes were rendered, which this scale does not use"
