"""Your own checkpoint, pairs and images, at the command line and in notebooks.

What is wrong is explained in one sentence, and nothing is left behind."""

import json
import os
import re
import signal

import pandas as pd
import pytest
import torch
from small_scale import make_classes, make_data
from processes import LONGEST, PARNB, env, fails_with, measured, parnb, several, start
from waiting import wait_for

EMOJI = ["--model", "tiny-rn", "--checkpoint", "emoji"]
NO_NETWORK = "http://127.0.0.1:9"  # a proxy that does not answer


class Hostile:
    "An object that makes a folder when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    "Forty pairs in a csv, and two classes of three images."
    return make_data(tmp_path_factory.mktemp("own"), pairs=40, per_class=3)


def clean(own, data, *args):
    return parnb(data, "clean", *EMOJI, "--out", str(data / "cleaned"), *args)


def measure(own, data, *model):
    return parnb(data, "measure", *model, "--images", str(own / "val"), "--attack", "sig")


def test_cleans_and_measures(own, tmp_path):
    "The folder of the cleaned model is printed; it is measured as a model folder and as a checkpoint."
    options = ["--epochs", "1", "--batch-size", "8", "--precision", "no"]
    p = clean(own, tmp_path, "--pairs", str(own / "pairs.csv"), *options)
    assert p.returncode == 0, p.stderr
    assert p.stdout.strip() == str(tmp_path / "cleaned")
    assert "cleaning: squared distance from the model before, on pairs: images 0." in p.stderr
    assert "threshold tau 2.15" in p.stderr and "WARNING: the threshold was not reached" in p.stderr
    assert json.loads((tmp_path / "cleaned" / "record.json").read_text(encoding="utf-8"))["tau"] == 2.15
    p = measure(own, tmp_path, "--model", str(tmp_path / "cleaned"))
    assert p.returncode == 0 and "n = 6" in p.stdout and "SIG" in p.stdout, p.stderr
    again = measure(own, tmp_path, "--model", "tiny-rn", "--checkpoint", f"{tmp_path / 'cleaned'}/")
    assert again.stdout == p.stdout, again.stderr


CLEAN = ["clean", *EMOJI, "--out", "{data}/cleaned"]
MEASURE = ["measure", *EMOJI]
MISTAKES = [
    ([*CLEAN, "--pairs", "real"], ["--model needs --pairs"]),
    ([*CLEAN, "--pairs", "pairs.csv", "--caption-column", "titel"], ["did you mean 'title'?"]),
    ([*CLEAN, "--pairs", "pairs.csv"], ["40 pairs do not fill one batch of", "--batch-size"]),
    ([*CLEAN, "--pairs", "missing.csv"], ["{own}/missing.csv does not exist"]),
    ([*CLEAN, "--pairs", "pairs.csv", "--attack", "sig"], ["--attack", "parnb poison"]),
    ([*CLEAN[:3], "--pairs", "pairs.csv", "--out", "o"], ["without --checkpoint has random weights"]),
    ([*MEASURE, "--images", "val", "--attack", "sig", "--target", "bananna"], ["did you mean 'banana'?"]),
    ([*MEASURE, "--images", "missing"], ["{own}/missing is not a folder"]),
    ([*MEASURE, "--images", "val", "--method", "par"], ["--method"]),
    ([*MEASURE, "--images", "val", "--head", "linear"], ["--head"]),
    (MEASURE, ["--model needs --images"]),
    (["measure", "--model", "tiny-rn", "--checkpoint", "emojy", "--images", "val"], ["emojy"]),
    (["clean", *EMOJI, "--out", "{data}/other", "--pairs", "pairs.csv"], ["other is not empty"]),
    (["poison", *EMOJI, "--out", "{data}/other", "--pairs", "pairs.csv"], ["other-backdoored is not empty"]),
    (
        ["clean", *EMOJI, "--out", "{data}/other", "--pairs", "pairs.csv", "--calibrate", "--images", "val"],
        ["other is not empty"],
    ),
]


@pytest.fixture(scope="module")
def mistakes(own, tmp_path_factory):
    "What each of the commands above did in the folder of the data, by its words."
    data = tmp_path_factory.mktemp("mistakes")
    for name in ("other", "other-backdoored"):  # models that were made with other options
        (data / name).mkdir()
        (data / name / "record.json").write_text(json.dumps(dict(stage="cleaned", key="0" * 12)))
    done = several([[w.format(data=data) for w in args] for args, _ in MISTAKES], env(data), cwd=own)
    assert not (data / "cleaned").exists() and not list(data.glob("artifacts/cleaned-*"))
    return {" ".join(args): p for (args, _), p in zip(MISTAKES, done)}


@pytest.mark.parametrize("args, words", MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_sentence(own, mistakes, args, words):
    fails_with(mistakes[" ".join(args)], *(w.format(own=own) for w in words))


def test_an_interrupted_measurement_continues(tmp_path):
    """Ctrl-C keeps what was embedded.

    The rest gives the numbers of an undisturbed measurement, and nothing is left behind."""
    val = make_classes(tmp_path / "val", classes=40, each=8)
    command = [PARNB, "measure", *EMOJI, "--images", str(val), "--attack", "all"]
    command += ["--images-batch", "64", "--json"]

    def kept():
        return [f.stat().st_size for f in (tmp_path / "a" / "artifacts").glob(".partial-embedded-*")]

    def finished(p):
        out, err = p.communicate(timeout=LONGEST)
        assert p.returncode == 0, err
        return measured(out)

    p = start(command, tmp_path / "a")
    wait_for(lambda: any(kept()), "some embeddings are kept", p, every=0.02)
    p.send_signal(signal.SIGINT)
    assert "run the same command again" in p.communicate(timeout=LONGEST)[1] and p.returncode == 130
    assert sum(kept())
    row = finished(start(command, tmp_path / "a"))
    assert row == finished(start(command, tmp_path / "b")) and 0.8 < row["clean_accuracy"] < 1
    assert not kept() and len(list((tmp_path / "a" / "artifacts").glob("head-*"))) == 1


def test_a_hostile_checkpoint_runs_nothing(own, tmp_path):
    torch.save(dict(state_dict=Hostile(tmp_path / "ran")), tmp_path / "bad.pt")
    options = ["--model", "tiny-rn", "--checkpoint", str(tmp_path / "bad.pt"), "--pairs", str(own / "pairs.csv")]
    p = parnb(tmp_path, "clean", *options, "--out", str(tmp_path / "cleaned"))
    fails_with(p, "bad.pt", "refused")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "cleaned").exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)  # it would have run
    assert (tmp_path / "ran").exists()


def test_mistakes_in_a_preset_of_your_own(own, tmp_path):
    "They come out of a notebook as one sentence, before anything is trained. Its base is the scale paper."
    mine = dict(
        base="paper",
        encoders=dict(mine=dict(model="tiny-rn", pretrained="emoji")),
        pairs=dict(poison=80, clean=80),
        images=6,
        sources=dict(pairs="missing.csv", images="val"),
        attacks=dict(badnet_stripes=dict(rate=0.1)),
    )
    (own / "mine.json").write_text(json.dumps(mine))
    given = "-p", "scale", str(own / "mine.json"), "-p", "attack", "badnet_stripes", "-p", "smoke", "True"
    fails_with(parnb(tmp_path, "run", "03_par_clean", *given, "-p", "encoder", "yours"), "unknown encoder 'yours'")
    fails_with(
        parnb(tmp_path, "run", "03_par_clean", *given, "-p", "encoder", "mine"), f"{own / 'missing.csv'} does not exist"
    )
    assert not list((tmp_path / "artifacts").glob("*ed-*/model.safetensors"))


def test_figures_and_tables_of_a_scale_of_your_own(tmp_path):
    """Its runs, results and figures lie apart from those of the scale tiny.

    A second call computes nothing."""
    own = make_data(tmp_path / "own", pairs=64, per_class=3)
    short = dict(epochs=1, batch_size=16)
    runs = [dict(attack="badnet_stripes", method="none"), dict(attack="badnet_stripes", method="par", tau=[2.15])]
    grid = dict(
        base="paper",
        encoder="mine",
        encoders=dict(mine=dict(model="tiny-rn", pretrained="emoji")),
        pairs=dict(poison=32, clean=32),
        images=6,
        sources=dict(pairs="pairs.csv", images="val"),
        attacks=dict(badnet_stripes=dict(rate=0.1)),
        poison_recipes=dict(default=short),
        cleaners=dict(par=dict(recipe=short)),
        experiments=dict(tab05_tau=runs, fig4_dynamics_tsne=runs),
    )
    (own / "grid.json").write_text(json.dumps(grid))
    data, figures = tmp_path / "data", tmp_path / "data" / "figures"
    command = "reproduce", "--scale", str(own / "grid.json"), "--only", "tab05", "--only", "fig4"
    p = parnb(data, *command, "--jobs", "2")
    assert p.returncode == 0 and "2 to compute" in p.stdout, p.stdout + p.stderr
    assert len(pd.read_csv(data / "local_results" / "grid.csv")) == 2
    assert {f.name for f in figures.iterdir()} == {"grid"}
    made = {f.name for f in (figures / "grid").iterdir()}
    assert {"tab05_tau.csv", "fig4_dynamics_tsne_badnet_stripes.png"} <= made
    assert pd.read_csv(figures / "grid" / "tab05_tau.csv").CA.notna().all()
    assert "0 to compute" in parnb(data, *command, "--dry-run").stdout
    (own / "grid.json").write_text(json.dumps(dict(grid, encoder="other")))
    fails_with(parnb(data, *command), "unknown encoder 'other'")


def test_the_grid_of_the_paper_is_known_offline(tmp_path):
    "Its runs are listed without a download, with an estimate of what they take."
    p = parnb(tmp_path, "reproduce", "--scale", "paper", "--dry-run", https_proxy=NO_NETWORK, HTTPS_PROXY=NO_NETWORK)
    assert p.returncode == 0, p.stderr
    estimate = re.search(r"about ([\d.]+) A100-hours or ([\d.]+) H100-hours, (\d+) GB of disk and (\d+) GB", p.stdout)
    slow, fast, disk, traffic = map(float, estimate.groups())
    assert 10 < fast < slow < 1000 and traffic < disk < 1000
    assert "RN50 badnet_stripes rate 0.003 par tau 2.15" in p.stdout and "name no synthetic pairs" in p.stdout
    fails_with(parnb(tmp_path, "reproduce", "--scale", "paper", "--gpus", "1"), "add --executor slurm")
