"`parnb audit` on your own models and images."

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from command_line import CommandLine
from processes import env, fails_with, parnb, several, written
from small_scale import make_classes, make_data, make_model, make_twin

from parnb.attacks import search
from parnb.core import PRETRAINED
from parnb.data.scenes import scenes
from parnb.models.clip import pixels
from parnb.registry import detectors, find, recipe
from parnb.study import suspicious
from parnb.study.audit import _model_detectors, audit, defender_of
from parnb.study.flags import flag_images
from parnb.training.saving import Saver

SUSPECT = PRETRAINED / "poisoned-05dddcfe09f1"
CLASSES = 6
SHORT = ["--detector", "inversion:quick=10,thorough=20", "--detector", "concentration:restarts=1,steps=20"]


@pytest.fixture(scope="module")
def audited(images, tmp_path_factory):
    "One audit: the process, the folder it ran in, and its page."
    folder = tmp_path_factory.mktemp("audit")
    page = folder / "audit.html"
    done = parnb(folder, "audit", "--model", SUSPECT, "--images", images, *SHORT, "--out", page, "--json")
    assert done.returncode == 0, done.stderr
    return done, folder, page


def test_findings_as_json(audited):
    found = json.loads(audited[0].stdout)
    assert found["findings"].keys() == {"inversion", "concentration"}
    assert found["classes"] == CLASSES and found["images"] == 4 * CLASSES and "no all-clear" in found["caution"]
    assert (
        found["settings"]["inversion"] == dict(quick=10, thorough=20)
        and "other settings than usual" in found["caution"]
    )
    assert any(c.startswith("accuracy: zero-shot accuracy") for c in found["checks"])
    for finding in found["findings"].values():
        scores = [s["score"] for s in finding["suspects"]]
        assert scores == sorted(scores, reverse=True) and finding["says"]
        assert abs(finding["score"]) < 100 and all(s["n"] <= 2 * CLASSES for s in finding["suspects"])


def test_the_page_stands_alone(audited):
    text = audited[2].read_text(encoding="utf-8")
    assert "http" not in text and "no all-clear" in text and text.count("data:image/png") >= 1
    assert "accuracy: zero-shot accuracy" in text and "other settings than usual (quick 10, thorough 20)" in text


def test_findings_are_kept_and_nothing_half_written(audited, images):
    kept = written(audited[1])
    assert kept, "nothing is kept"
    again = parnb(audited[1], "audit", "--model", SUSPECT, "--images", images, *SHORT)
    assert again.returncode == 0 and written(audited[1]) == kept
    assert "no all-clear" in again.stdout and "score" in again.stdout
    assert not [*audited[1].rglob(".partial*"), *audited[1].rglob("*.lock")]


def test_all_detectors_search_if_none_is_named():
    seen = CommandLine("audit")("audit", "--model", SUSPECT, "--scale", "tiny")["run"].model_dump()
    assert seen["only"] is None and seen["parameters"] is None
    assert _model_detectors(None) == [*detectors("model")]


def test_a_detector_of_a_plugin_that_changes_is_run_again(monkeypatch):
    auditor, keys = defender_of("tiny", SUSPECT, count=16), []
    monkeypatch.setattr("parnb.study.audit.artifact", lambda stage, key, *_: keys.append(key))
    monkeypatch.setattr("parnb.study.audit._read", lambda folder: None)
    for code in ("1" * 64, "2" * 64):
        monkeypatch.setattr("parnb.study.audit.find", lambda *named: replace(find(*named), code=code))
        audit(auditor, only=["inversion"])
    assert len({*keys}) == 2


def test_an_interrupted_search_goes_on(monkeypatch, tmp_path):
    "It was interrupted in its second part; the first one is not computed again, and the finding is the same."
    auditor = defender_of("tiny", SUSPECT, count=32)
    auditor = replace(auditor, names=auditor.names[:8])
    options = dict(
        only=["inversion"], parameters=dict(inversion=dict(patch=0, shift=0, suspects=4, quick=5, thorough=5))
    )
    embed, calls = search._embed, []

    def counted(*inputs):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return embed(*inputs)

    monkeypatch.setattr(search, "_embed", counted)
    monkeypatch.setattr(Saver, "due", lambda self: self.partial is not None)
    found, counts = [], []
    for folder, stops in (("whole", (0,)), ("interrupted", (10, 0))):
        monkeypatch.setattr("parnb.study.artifacts.ARTIFACTS", tmp_path / folder)
        for stop in stops:
            calls.clear()
            try:
                again = replace(auditor, shared={})  # another process shares nothing
                found.append(audit(again, "suspect", **options).findings["inversion"])
            except KeyboardInterrupt:
                assert [*(tmp_path / folder).glob(".partial*/*.pt")]
        counts.append(len(calls))
        assert len([*(tmp_path / folder).iterdir()]) == 1, "only the finding is left"
    assert found[0].suspects.equals(found[1].suspects) and found[0].score == found[1].score
    assert counts[0] - counts[1] == 7, counts  # five steps of the first part, and two of the second


def test_a_model_compared_with_its_twin_shows_nothing(audited, images, tmp_path):
    twin = make_twin(SUSPECT, tmp_path / "twin")
    command = ["audit", "--model", SUSPECT, "--images", images, *SHORT, "--json", "--against"]
    refused = parnb(audited[1], *command, SUSPECT)
    assert refused.returncode == 1 and "have the same weights" in refused.stderr
    done = parnb(audited[1], *command, twin)
    assert done.returncode == 0, done.stderr
    alone, found = json.loads(audited[0].stdout), json.loads(done.stdout)
    assert found["reference"] == str(twin) and found["findings"].keys() == alone["findings"].keys()
    assert any(c.startswith("the reference: accuracy") for c in found["checks"])
    assert f"a backdoor that {twin} has, too, is subtracted" in found["caution"]
    assert all(abs(f["score"]) < 1e-3 for f in found["findings"].values())
    assert any(f["score"] > 0.1 for f in alone["findings"].values())


def test_pairs_are_ranked_beside_the_model(images, tmp_path):
    "By the detectors that were named; the model is not searched, since none of its detectors was."
    pairs, page = make_data(tmp_path / "own", pairs=60) / "pairs.csv", tmp_path / "page.html"
    command = ["audit", "--model", SUSPECT, "--images", images, "--pairs", pairs, "--pairs-count", "50", "--out", page]
    done = parnb(tmp_path, *command, "--detector", "prompt_contrast", "--detector", "clip_similarity", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["findings"] == {} and found["pairs"].keys() == {"prompt_contrast", "clip_similarity"}
    for ranking in found["pairs"].values():
        scores = [p["score"] for p in ranking["first"]]
        assert (ranking["scored"], ranking["known"], len(scores)) == (50, 60, 12)
        assert scores == sorted(scores, reverse=True) and max(p["pair"] for p in ranking["first"]) < 60
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png") == 24 and "50 of 60 pairs" in text and "no backdoor by itself" in text
    kept = {p.name for p in tmp_path.rglob("ranked-*")}
    again = parnb(tmp_path, *command[:-2], "--detector", "prompt_contrast")
    assert again.returncode == 0 and {p.name for p in tmp_path.rglob("ranked-*")} == kept and len(kept) == 2
    assert "50 of 60 pairs of " in again.stdout and "was not searched" in again.stdout


def with_stripes(images):
    "The trigger of the suspect on images."
    trigger = find("attack", "badnet_stripes").make(
        **recipe("attack", "badnet_stripes", "tiny", "rn", "entrenched")["parameters"]
    )
    x = trigger(pixels(images), torch.arange(len(images)))
    return (x.permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")


def test_images_of_unknown_origin_are_flagged(tmp_path):
    "The page shows them; a detector of images alone does not search the model."
    page, new = tmp_path / "page.html", tmp_path / "new"
    new.mkdir()
    for k, triggered in enumerate(with_stripes(scenes("val", 40).images[:12])):
        Image.fromarray(triggered).save(new / f"{k}.png")
    command = ["audit", "--model", SUSPECT, "--scale", "tiny", "--flag", new, "--detector", "prompt_contrast"]
    done = parnb(tmp_path, *command, "--out", page, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["flags"]["prompt_contrast"]
    assert (found["scored"], found["clean"]) == (12, 128) and len(found["flagged"]) > 3
    assert all(f["score"] > found["threshold"] for f in found["flagged"])
    assert sum(f["predicted"] == "banana" for f in found["flagged"]) > len(found["flagged"]) / 2
    text = page.read_text(encoding="utf-8")
    assert "of 12 images flagged" in text and "may carry a trigger" in text and "http" not in text
    assert text.count("data:image/png") == len(found["flagged"])
    again = parnb(tmp_path, *command)
    assert "of 12 images of new flagged" in again.stdout and "was not searched" in again.stdout, again.stderr


def test_flagging_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    "No image is scored twice."
    make_classes(tmp_path / "new", classes=6, each=4)
    detector, scored = find("detector", "prompt_contrast").cls, []
    score = detector.score

    def counted(self, images):
        scored.append(len(images))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(self, images)

    monkeypatch.setattr(detector, "score", counted)
    monkeypatch.setattr(Saver, "due", lambda self: self.partial is not None)
    monkeypatch.setattr(suspicious._scores, "__defaults__", (8,))  # images at once
    monkeypatch.setattr("parnb.study.artifacts.ARTIFACTS", tmp_path / "artifacts")
    auditor = defender_of("tiny", SUSPECT)
    with pytest.raises(KeyboardInterrupt):
        flag_images(tmp_path / "new", auditor, ["prompt_contrast"])
    flags = flag_images(tmp_path / "new", auditor, ["prompt_contrast"])["prompt_contrast"]
    assert flags.scored == 24 and scored == [8, 8, 8, 8, 128], scored  # the third one again, then the clean images


MISTAKES = [
    ([], "needs --model"),
    (["--model", SUSPECT], "needs --images"),
    (["--model", SUSPECT, "--checkpoint", "other.pt", "--scale", "tiny"], "a folder with its own weights"),
    (["--model", "hf-hub:a/b", "--checkpoint", "other.pt", "--scale", "tiny"], "a model on a hub with its own weights"),
    (["--model", SUSPECT, "--scale", "tiny", "--out", "/proc/audit.html"], "cannot be made"),
    (["--model", SUSPECT, "--scale", "tiny", "--names", "names.txt"], "--names needs --images"),
    (["--model", SUSPECT, "--images", "nowhere"], "nowhere"),
    (["--model", "tiny-rn", "--images", "."], "random weights"),
    (["--model", SUSPECT, "--scale", "tiny", "--detector", "inversoin"], "did you mean"),
    (["--model", SUSPECT, "--scale", "tiny", "--pairs", "nowhere.csv"], "nowhere.csv"),
    (
        ["--model", SUSPECT, "--scale", "tiny", "--pairs", "real", "--detector", "inversion"],
        "none of them is named",
    ),
    (["--model", SUSPECT, "--scale", "tiny", "--detector", "masking"], "needs --pairs"),
    (["--model", SUSPECT, "--scale", "tiny", "--flag", "nowhere"], "nowhere is not a folder"),
    (["--model", SUSPECT, "--scale", "tiny", "--flag", ".", "--detector", "density"], "needs --pairs"),
    (["--model", SUSPECT, "--scale", "tiny", "--flag", ".", "--detector", "inversion"], "none of them is named"),
    ([SUSPECT, SUSPECT, "--scale", "tiny", "--flag", "."], "audit of one model"),
    (["--model", SUSPECT, "--scale", "tiny", "--flag", SUSPECT], "holds no images"),
    (["--model", SUSPECT, "--scale", "tiny", "--flag", "IMAGES", "--pairs", "nowhere.csv"], "nowhere.csv"),
    (["--model", SUSPECT, "--scale", "tiny", "--flag", "IMAGES", "--root", "."], "--root needs --pairs"),
    (
        [*("--model", SUSPECT, "--scale", "tiny", "--flag", "IMAGES", "--detector", "masking"), "--against", SUSPECT],
        "--against has no effect",
    ),
    (["--model", SUSPECT, "--scale", "tiny", "--out", "page.pdf"], "ends in .html"),
    (["--model", SUSPECT, "--images", "IMAGES", "--images-count", "5000"], "too many for a search"),
    (["--model", SUSPECT, "--scale", "tiny", "--against-checkpoint", "x.pt"], "needs --against"),
    (["--model", SUSPECT, "--scale", "tiny", "--against", "tiny-rn"], "random weights"),
    (["--model", SUSPECT, "--scale", "tiny", "--against", "UNTRAINED"], "random weights"),
    (["--model", "UNTRAINED", "--scale", "tiny"], "random weights"),
    ([SUSPECT, "UNTRAINED", "--scale", "tiny"], "random weights"),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    "What each of the commands above did; nothing was computed."
    data = tmp_path_factory.mktemp("mistakes")
    make_model(data / "untrained", looks_trained=False)  # such as a training script saves before its first step
    places = dict(UNTRAINED=data / "untrained", IMAGES=make_classes(data / "images", 1))
    commands = [[places.get(g, g) for g in given] for given, _ in MISTAKES]
    done = several([["audit", *c] for c in commands], env(data))
    assert not [*data.rglob("audited-*"), *data.rglob("flagged-*"), *data.rglob("ranked-*")]
    return done


@pytest.mark.parametrize("k", range(len(MISTAKES)), ids=[" ".join(map(str, given)) for given, _ in MISTAKES])
def test_bad_input_is_one_sentence(mistakes, k):
    assert len(mistakes[k].stderr.strip().splitlines()) == 1, mistakes[k].stderr
    fails_with(mistakes[k], MISTAKES[k][1])
