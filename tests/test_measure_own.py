"""`parnb measure --model`: the strengths of triggers, the share without a trigger, and what is not measured at all.

A model that is not backdoored, or that is measured in the wrong way, must not look like a cleaned one."""

import json
import shutil

import pytest
from small_scale import make_classes, make_data, make_model
from processes import env, fails_with, parnb, several

EMOJI = ["measure", "--model", "tiny-rn", "--checkpoint", "emoji"]
VIT = ["measure", "--model", "tiny-vit", "--checkpoint", "emoji"]
OF_VAL = ["--images", "val", "--attack", "blended_text", "--target", "fire truck"]
TINY = [*OF_VAL, "--scale", "tiny"]
SCENES = ["--images", "scenes", "--attack", "blended_text", "--target", "abacus", "--scale", "tiny", "--json"]
UNSEEN = ["--images", "val", "--scale", "tiny", "--target", "fire truck", "--attack"]
NAN = ["measure", "--model", "tiny-rn", "--checkpoint", "nan.pt", *OF_VAL]

GOOD = {
    "of the scale": [*EMOJI, *TINY],
    "of the encoder": [*VIT, *TINY],
    "of the regime": [*EMOJI, *TINY, "--regime", "entrenched"],
    "of the paper": [*EMOJI, *OF_VAL],
    "typed": [*EMOJI, *TINY, "--strength", "alpha=0.25,lines=2", "--strength", "channels=all"],
    "none": [*EMOJI, *SCENES, "--strength", "alpha=0"],
    "full": [*EMOJI, *SCENES, "--strength", "alpha=1"],
    "other target": [*EMOJI, "--images", "val", "--names", "others.txt", "--attack", "sig"],
    "one broken": [*EMOJI, "--images", "broken_1", "--attack", "sig"],
    "one broken again": [*EMOJI, "--images", "broken_1", "--attack", "sig", "--json"],
    "a word": [*EMOJI, *UNSEEN, "caption_word", "--strength", "word=zz"],
    "four allowed": [*EMOJI, "--images", "broken_4", "--attack", "sig", "--unreadable", "0.25"],
}
BAD = {
    "unknown parameter": ([*EMOJI, *TINY, "--strength", "alhpa=0.5"], ["no parameter 'alhpa'", "alpha, a number ≥ 0"]),
    "out of range": ([*EMOJI, *TINY, "--strength", "alpha=2"], ["alpha = '2'", "≤ 1", "lines, a whole number ≥ 1"]),
    "wrong type": ([*EMOJI, *TINY, "--strength", "lines=some"], ["lines = 'some'", "a whole number ≥ 1 and ≤ 7"]),
    "no value": ([*EMOJI, *TINY, "--strength", "alpha"], ["--strength NAME=VALUE"]),
    "typed twice": ([*EMOJI, *TINY, "--strength", "alpha=0.5,alpha=1"], ["two values for alpha"]),
    "which trigger": ([*EMOJI, "--images", "val", "--strength", "alpha=1"], ["name it with --attack"]),
    "of a run": (
        ["measure", "--attack", "sig", "--strength", "alpha=1"],
        ["SIG has no parameter 'alpha'", "amplitude"],
    ),
    "unknown regime": ([*EMOJI, *OF_VAL, "--regime", "entrenched"], ["--regime entrenched", "--scale tiny"]),
    "no model": (["measure", "--images", "val"], ["--images needs --model"]),
    "no model but weights": (["measure", "--checkpoint", "nan.pt"], ["--checkpoint needs --model"]),
    "no weights": (
        ["measure", "--model", "ViT-B-32-quickgelu", *OF_VAL],
        ["--model ViT-B-32-quickgelu without --checkpoint has random weights", "openai"],
    ),
    "no architecture": (["measure", "--model", "nan.pt", *OF_VAL], ["nan.pt is a file", "--checkpoint"]),
    "unknown architecture": (["measure", "--model", "ViT-B-23", *OF_VAL], ["did you mean"]),
    "not finite": (NAN, ["not finite"]),
    "no place for the class": ([*EMOJI, *OF_VAL, "--templates", "one.txt"], ["'a photo' has no {}"]),
    "another place": ([*EMOJI, *OF_VAL, "--templates", "named.txt"], ["'a {} of {name}'", "write it as"]),
    "not its classes": ([*EMOJI, *UNSEEN, "concept_swap"], ["unknown class 'cow'"]),
    "too many broken": ([*EMOJI, "--images", "broken_4", "--attack", "sig"], ["4 of 20 images", "--unreadable"]),
}


def _broken(folder, own, count):
    "Twenty images in two classes, the first `count` of which cannot be read."
    for k, name in enumerate(("banana", "octopus")):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            shutil.copy(own / f"{2 * i + k}.png", folder / name / f"{i}.png")
    for i in range(count):
        (folder / "banana" / f"{i}.png").write_bytes(b"not an image")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "What each command did, by its name."
    import torch
    from safetensors.torch import load_file

    own = make_data(tmp_path_factory.mktemp("own"), pairs=2, per_class=3)
    state = load_file(make_model(own / "model") / "model.safetensors")
    state["visual.attnpool.c_proj.bias"][0] = float("nan")
    torch.save(dict(state_dict=state), own / "nan.pt")
    (own / "one.txt").write_text("a photo\n")
    (own / "named.txt").write_text("a {} of {name}\n")
    (own / "others.txt").write_text("octopus\nfire truck\n")
    make_classes(own / "scenes")
    for count in (1, 4):
        _broken(own / f"broken_{count}", own, count)
    commands = GOOD | {name: args for name, (args, _) in BAD.items()}
    ran = several(commands.values(), env(tmp_path_factory.mktemp("data")), cwd=own)
    return dict(zip(commands, ran))


def printed(p):
    assert p.returncode == 0, p.stderr
    return p.stdout


STRENGTHS = {
    "of the scale": "(alpha 0.5, lines 3)",
    "of the encoder": "(alpha 0.7, lines 3)",
    "of the regime": "(alpha 0.5, lines 1, size 33, channels all)",
    "of the paper": "(alpha 0.5, lines 1)",
    "typed": "(alpha 0.25, lines 2, channels all)",
}


@pytest.mark.parametrize("name", STRENGTHS)
def test_the_strength_and_the_untriggered_share_stand_beside_the_rate(done, name):
    "The strength is that of the scale's recipe, of the regime, or what was typed."
    line = next(line for line in printed(done[name]).splitlines() if "Blended-Text" in line)
    assert line.endswith(STRENGTHS[name]) and "n = 3, towards fire truck; without the trigger " in line


def test_the_strength_decides_the_rate(done):
    "A trigger of weight 0 changes no pixel: the ASR is the share of untriggered images that get the target."
    row, full = (json.loads(printed(done[name])) for name in ("none", "full"))
    assert row["strengths"] == {"blended_text": dict(alpha=0.0, lines=3)} and row["target"] == "abacus"
    assert row["attack_success_rate_blended_text"] == row["target_share_clean"]
    assert row["clean_accuracy_triggered_blended_text"] == row["clean_accuracy"] == full["clean_accuracy"]
    assert full["clean_accuracy_triggered_blended_text"] < row["clean_accuracy"]


def test_a_trigger_in_the_text_is_measured_on_prompts(done):
    "Open_clip's 80 prompts of the other class."
    line = next(line for line in printed(done["a word"]).splitlines() if "Caption word" in line)
    assert "ASR-Prompt" in line and line.endswith("(word zz)")
    assert "n = 80, towards fire truck; without the trigger " in line


def test_a_missing_target_is_named(done):
    assert "no class is named banana; name the target with --target" in printed(done["other target"])


def test_broken_images_are_counted_and_listed(done):
    "One of twenty is a warning, with its name; a later call still tells of it."
    assert "unreadable images  1," in printed(done["one broken"])
    warnings = [line for line in done["one broken"].stderr.splitlines() if "broken_1/banana/0.png" in line]
    assert warnings and "1 of 20 images" in warnings[0]
    assert json.loads(printed(done["one broken again"]))["n_unreadable"] == 1
    assert "unreadable images  4," in printed(done["four allowed"])


def test_only_the_first_process_of_torchrun_measures(tmp_path):
    "The others end without an error, which would stop the first one; this run trains nothing."
    done = parnb(tmp_path, "measure", "--smoke", "--attack", "none", "--method", "none", RANK="1")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not [*tmp_path.glob("artifacts/*")]


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_measured_is_one_sentence(done, name):
    fails_with(done[name], *BAD[name][1])
