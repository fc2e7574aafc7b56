"Models by name: what comes with parnb is listed, whole, and gives its numbers again without a network."

import hashlib
import json
import os
import subprocess

import pytest
from conftest import offline
from processes import PARNB, env, fails_with, several

import parnb
from parnb.core import PRETRAINED, ParnbError, file_sha256
from parnb.models.clip import load_clip
from parnb.study import zoo
from parnb.study.artifacts import read_record
from parnb.study.versions import commit

MOST = 50 * 2**20  # bytes of all weights
MODELS = zoo.zoo()
POISONED = "tiny-rn/badnet_stripes/entrenched"


def drawn() -> list[str]:
    "One model by the hash of the commit, since each takes half a minute; all with PARNB_ZOO=all."
    if os.environ.get("PARNB_ZOO") == "all":
        return [m.name for m in MODELS]
    head = commit().partition(" ")[0]  # the same for each process of pytest, whatever changes meanwhile
    return [min((m.name for m in MODELS), key=lambda n: hashlib.sha256((head + n).encode()).digest())]


def test_what_comes_with_parnb_is_what_is_listed():
    made = {p.name for p in PRETRAINED.iterdir() if p.name.startswith(("poisoned-", "cleaned-"))}
    assert made == {m.folder.name for m in MODELS if m.run.attack}
    assert len({m.name for m in MODELS}) == len(MODELS) and all(m.shipped for m in MODELS)
    assert sum((m.folder / "model.safetensors").stat().st_size for m in MODELS) <= MOST


@pytest.mark.parametrize("model", MODELS, ids=[m.name for m in MODELS])
def test_each_is_whole_and_says_what_it_is(model):
    record, text = read_record(model.folder), (model.folder / "README.md").read_text(encoding="utf-8")
    assert record["sha256"] == file_sha256(model.folder / "model.safetensors")
    assert (model.kind == "poisoned") == ("deliberately backdoored" in text)
    assert f"# {model.name}\n" in text and "license: cc-by-sa-4.0" in text
    assert 0.5 < model.stated()["clean_accuracy"] <= 1
    assert ("attack_success_rate" in model.stated()) == (model.kind != "clean")


@pytest.mark.parametrize("name", drawn())
def test_it_gives_its_numbers_again_without_a_network(name, tmp_path):
    "In an empty data folder, as on a new machine."
    command = [PARNB, "zoo", name, "--verify"]
    done = subprocess.run([*offline(), *command], env=env(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["ok", name]


def test_a_false_number_is_found(monkeypatch):
    model = zoo.find_model("tiny-vit/clean")
    true = model.stated()
    monkeypatch.setattr(zoo, "rates", lambda folder, run: true | dict(clean_accuracy=true["clean_accuracy"] - 0.01))
    assert zoo.verify(model) == {"clean_accuracy": (true["clean_accuracy"], true["clean_accuracy"] - 0.01)}


def test_a_model_loads_by_name_and_equals_its_folder():
    model = parnb.load_model(MODELS[0].name)[0]
    other = load_clip(MODELS[0].folder)[0]
    assert all(v.equal(other.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(AttributeError, match="load_modell"):
        parnb.load_modell


def test_what_is_not_here_says_how_to_get_it():
    absent = zoo.find_model("tiny-rn/sig/quick@987")
    with pytest.raises(ParnbError, match="--make trains it"):
        zoo.verify(absent)
    assert zoo.find_model(absent.name).command == "parnb poison --attack sig --encoder rn --regime quick --seed 987"


def test_bad_input_is_one_sentence(tmp_path):
    wrong = {
        ("tiny-rn",): "no name of the zoo",
        ("tiny-rn/clean/quick",): "no name of the zoo",
        ("tiny-rn/clean@1",): "no name of the zoo",
        ("tiny-rm/clean",): "did you mean 'tiny-rn'",
        ("tiny-rn/sgi/quick",): "did you mean 'sig'",
        ("tiny-rn/sig/quik",): "did you mean 'quick'",
        ("tiny-rn/sig/quick/parr",): "did you mean 'par'",
        ("tiny-rn/sig/entrenched/parr",): "did you mean 'par'",
        ("tiny-rn/wanet/entrenched",): "wanet",
        ("tiny-rn/clean", "--all"): "--all has no effect",
        ("--make",): "--make needs the name",
        ("--measure",): "--measure needs the name",
        ("tiny-rn/clean", "--measure", "--verify"): "leave out --measure",
        ("tiny-rn/sig/quick@987", "--measure"): "add --make",
        ("tiny-rn/sig/quick@987", "--verify"): "does not come with parnb",
        ("tiny-rn/sig/quick@987", "--make", "--verify"): "leave out --make",
        ("--all", "--verify"): "leave out --all",
    }
    done = several([["zoo", *words] for words in wrong], env(tmp_path), tmp_path)
    for p, expected in zip(done, wrong.values()):
        fails_with(p, expected)
    assert not list(tmp_path.glob("artifacts/*"))


def test_json_has_what_the_card_has(tmp_path):
    commands = [["zoo", MODELS[0].name, "--json"], ["zoo", "--json"], ["zoo", POISONED, "--json"]]
    one, many, more = several(commands, env(tmp_path), tmp_path)
    about = json.loads(one.stdout)
    assert about == json.loads(many.stdout)[0]
    assert {"name", "kind", "command", "licence", "sha256", "clean_accuracy", "n_clean"} <= about.keys()
    poisoned = json.loads(more.stdout)
    assert (poisoned["attack"], poisoned["target"]) == ("badnet_stripes", "banana") and poisoned["parameters"]
