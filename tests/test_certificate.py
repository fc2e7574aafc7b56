"`parnb audit BEFORE AFTER`: what a cleaning did to a model whose trigger and target are unknown."

import json
import re

import pytest
from processes import env, fails_with, parnb, several, written
from small_scale import make_data, make_twin

from parnb.core import PRETRAINED
from parnb.models.clip import load_clip, model_key

SUSPECT, CLEAN = PRETRAINED / "poisoned-05dddcfe09f1", PRETRAINED / "tiny-rn"
CLASSES, EACH = 6, 4
QUICK = ["--detector", "concentration:restarts=1,steps=20"]  # the others take minutes
RECORD = dict(
    canaries=[dict(label="Blended", target="owl", rate_before=0.97, rate_after=0.02, low=0.01, high=0.03, n=1000)],
    canary_limit=0.05,
    strength="lr 0.003",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "The data folder of all certificates here, so that findings are shared."
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def cleaned(data):
    "A model folder whose record names a canary, as `parnb clean --calibrate` writes."
    folder = data / "cleaned"
    folder.mkdir()
    for f in CLEAN.iterdir():
        (folder / f.name).symlink_to(f)
    (folder / "record.json").unlink(missing_ok=True)
    key = model_key(load_clip(SUSPECT)[0])
    (folder / "record.json").write_text(json.dumps(RECORD | dict(calibrated_from=key)))
    return folder


@pytest.fixture(scope="module")
def certified(data, images, cleaned):
    "One certificate: the process, and its page."
    page = data / "page.html"
    done = parnb(data, "audit", SUSPECT, cleaned, "--images", images, *QUICK, "--out", page, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), page.read_text(encoding="utf-8")


def test_the_certificate_as_json(certified):
    found = certified[0]
    assert "does not say that the model has no backdoor" in found["statement"]
    a = found["accuracy"]
    assert a["before"]["n"] == a["after"]["n"] == a["difference"]["n"] == CLASSES * EACH
    low, high = a["difference"]["ci"]
    assert low < a["difference"]["value"] < high and a["further"] is None
    assert (
        found["before"]["findings"].keys()
        == found["after"]["findings"].keys()
        == {r["detector"] for r in found["remains"]}
    )
    for r in found["remains"]:
        assert r["further"] is None
        for at in ("before", "after"):
            n = r[at]["n"]
            assert 0 < n <= CLASSES * EACH // 2 and 0 <= r[at]["untriggered"] <= 1, "half of the images were searched"
    assert found["canaries"] == RECORD | dict(tested_here=False), "a record that this computer did not write"
    assert found["further"] is None and found["assurance"]["of"] == 30
    assert any("--pairs" in text for text in found["untested"])
    assert any("it was not run" in text for text in found["untested"])


def test_the_page_stands_alone(certified):
    page = certified[1]
    assert "http" not in page and page.count("data:image/png") >= 2
    assert "does not say that the model has no backdoor" in page and "Not available" not in page
    assert "97.0% before, 2.0% (1.0% to 3.0%) of 1000 after" in page
    assert page.count("own record says; not tested here") >= 2, "in the summary, and beside the canaries"
    assert not re.search(r"is clean|\bno backdoor (?:is|was) (?:left|found)", page)


def test_findings_are_computed_once(certified, data, images):
    "The audit of one model reads what the certificate found, and the other way round."
    kept = written(data)
    assert kept, "nothing is kept"
    again = parnb(data, "audit", "--model", SUSPECT, "--images", images, *QUICK)
    assert again.returncode == 0, again.stderr
    now = written(data)
    assert {k: now[k] for k in kept} == kept and all(k.startswith("checked-") for k in now.keys() - kept.keys())
    assert not [*data.rglob(".partial*"), *data.rglob("*.lock")]


def test_a_model_compared_with_its_twin(certified, data, images, tmp_path):
    refused = parnb(data, "audit", SUSPECT, SUSPECT, "--images", images, *QUICK)
    assert refused.returncode == 1 and "have the same weights" in refused.stderr
    done = parnb(data, "audit", SUSPECT, make_twin(SUSPECT, tmp_path / "twin"), "--images", images, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["remains"] and all(r["before"] == r["after"] for r in found["remains"])
    found["after"].pop("model"), found["before"].pop("model")
    assert found["before"] == found["after"] and found["accuracy"]["difference"]["value"] == 0
    assert not found["accuracy"]["classes"] and not found["canaries"]
    assert any("--calibrate" in text for text in found["untested"])


def test_a_further_training_is_kept_and_measured(tmp_path, monkeypatch):
    "Of two steps; its pairs are a csv, from which those of the target are left out."
    from parnb.study import artifacts, certificate, further as trainings, own

    monkeypatch.setattr(own, "DATA", tmp_path)
    monkeypatch.setattr(artifacts, "ARTIFACTS", tmp_path / "artifacts")
    pairs = make_data(tmp_path / "own", pairs=64) / "pairs.csv"
    scale = own.own_scale(CLEAN, pairs=pairs, base="tiny")
    rebound = trainings.rebound_of("tiny", CLEAN).smallest()
    short = dict(inversion=dict(amplitude=0, shift=0, quick=1, thorough=1, suspects=4))
    further = trainings.Further(scale, rebound)
    settings = dict(count=64, only=["inversion"], parameters=short, further=further, most=2)
    made = certificate.certify("tiny", (str(SUSPECT), None), (str(CLEAN), None), **settings)
    assert made.further["steps"] == 2 and made.further["pairs"] + made.further["left_out"] == 64
    first, *others = made.remains
    assert first["target"] in made.further["targets"] and 0 <= first["further"]["success"] <= 1
    assert all(r["further"] is None for r in others if r["target"] not in made.further["targets"])
    assert made.accuracy["further"]["n"] == 64


MISTAKES = [
    ([SUSPECT, "--scale", "tiny"], "takes two models, BEFORE and AFTER, or none and --model, not 1"),
    ([SUSPECT, CLEAN, CLEAN, "--scale", "tiny"], "not 3"),
    ([SUSPECT, SUSPECT / "model.safetensors", "--scale", "tiny"], "name its architecture with --model"),
    ([SUSPECT, CLEAN, "--images", "IMAGES", "--pairs", "real"], "--pairs) needs --rebound-lr"),
    ([SUSPECT, CLEAN, "--scale", "tiny", "--pairs", "nowhere.csv"], "nowhere.csv"),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory, images):
    "What each of the commands above did; nothing was computed."
    data = tmp_path_factory.mktemp("mistakes")
    done = several([["audit", *(images if g == "IMAGES" else g for g in given)] for given, _ in MISTAKES], env(data))
    assert not [*data.rglob("audited-*")]
    return done


@pytest.mark.parametrize("k", range(len(MISTAKES)), ids=[says for _, says in MISTAKES])
def test_bad_input_is_one_sentence(mistakes, k):
    assert len(mistakes[k].stderr.strip().splitlines()) == 1, mistakes[k].stderr
    fails_with(mistakes[k], MISTAKES[k][1])
