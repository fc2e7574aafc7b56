"A method of somebody else on the board: a claim is made, recomputed, and refused where it is false."

import json
from pathlib import Path

import pandas as pd
import pytest
from processes import PARNB, env, fails_with, git, python, several
from scripts import load_script

from parnb.core import CACHE, ParnbError, file_sha256
from parnb.scales import load_preset
from parnb.study import apart, submission, verification
from parnb.study.agreement import COMPARED
from parnb.study.protocol import ASR, UNCLEANED

METHOD = """from typing import ClassVar

import pandas as pd
import torch
from parnb.cleaners.base import Cleaner
from parnb.registry import register_cleaner

RECIPE = dict(parameters=dict(share=0.02), grid=dict(share=[0.02, 0.9]))


@register_cleaner("small_weights", label="Small weights", reference="an example", recipes={"default": RECIPE})
class SmallWeights(Cleaner):
    "Set the smallest weights of each convolution to zero, without a training."

    strength: ClassVar[tuple[str, ...]] = ("share",)
    share: float = 0.02

    @torch.no_grad()
    def clean(self, model, pairs, tokenizer, recipe, reference, **options):
        for p in model.visual.parameters():
            if p.ndim == 4:
                p[p.abs() < p.abs().flatten().quantile(self.share)] = 0
        return model, pd.DataFrame(dict(step=[0]))
"""
ROOT = Path(__file__).resolve().parents[1]
ONE = ["--attack", "badnet_stripes"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A method in a file, and its claim for one model, made in a data folder without models and results."
    folder = tmp_path_factory.mktemp("submission")
    CACHE.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir()
    (folder / "data" / "cache").symlink_to(CACHE, target_is_directory=True)  # scenes alone, which take a minute
    (folder / "method.py").write_text(METHOD)
    done = parnb(folder, "submit", "method.py", *ONE, "--out", "claim.json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "claim.json").read_text())


def parnb(folder, *words):
    return python(env(folder / "data"), PARNB, *words, cwd=folder)


def test_a_claim_says_what_was_done(made):
    _, claim = made
    assert claim["protocol"] == submission.protocol_hash() and len(claim["code"]) == 64
    (choice,), (cell,) = claim["choices"], claim["cells"]
    assert [t["share"] for t in choice["tried"]] == [0.02, 0.9] and choice["setting"] == 0
    assert cell["n_clean"] == 5200 and cell["n_triggered"] == 5180
    assert (cell["setting"] == UNCLEANED) == (choice["status"] == "none")
    assert claim["summary"]["worst"] == cell[ASR]


def test_recomputing_gives_the_same_numbers(made):
    folder, claim = made
    done = parnb(folder, "verify", "claim.json", "--method", "method.py", "--all", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert not answer["disagreements"]
    tried = [t for t in claim["choices"][0]["tried"] if t["setting"] != 0]
    assert [t["clean_accuracy_dev"]["claimed"] for t in answer["tried"]] == [t["clean_accuracy_dev"] for t in tried]
    for found, cell in zip(answer["cells"], claim["cells"], strict=True):
        for name in COMPARED:
            assert found[name]["claimed"] == cell[name] == pytest.approx(found[name]["found"], abs=1e-6)  # 6 digits
    assert not any((folder / "data" / "verified").iterdir())  # the next one computes again
    (folder / "data" / "verified" / "killed").mkdir()  # what a killed one left is removed by the next


def test_a_false_number_is_rejected(made):
    "Even if the rest of the claim fits to it."
    folder, claim = made
    no_interval = {f"{ASR}_low": None, f"{ASR}_high": None}
    cells = [c | no_interval | {ASR: c[ASR] + (0.5 if c[ASR] < 0.5 else -0.5)} for c in claim["cells"]]
    false = claim | dict(cells=cells, summary=submission.summarise(cells))
    (folder / "false.json").write_text(json.dumps(false))
    done = parnb(folder, "verify", "false.json", "--method", "method.py")
    fails_with(done, "the claim is not confirmed: attack_success_rate differs in 1 of 1 cells by more than")
    assert "found" in done.stdout and "drawn at random: --draw " in done.stderr
    assert not (folder / "data" / "verified" / "killed").exists()
    choice = claim["choices"][0]  # the setting that costs too much would still do so
    tried = [t if t["setting"] == 0 else t | dict(clean_accuracy_dev=0.7) for t in choice["tried"]]
    (folder / "false.json").write_text(json.dumps(claim | dict(choices=[choice | dict(tried=tried)])))
    done = parnb(folder, "verify", "false.json", "--method", "method.py", "--all")
    fails_with(done, "the claim is not confirmed: clean_accuracy_dev differs in 1 of 1 cells by more than")
    assert "setting 1, which was tried" in done.stdout


def test_a_changed_method_is_another_one(made, tmp_path):
    "Its runs have other keys, and its old claim is refused."
    folder, claim = made
    (tmp_path / "method.py").write_text(METHOD.replace("quantile(self.share)", "quantile(self.share / 2)"))
    (tmp_path / "claim.json").write_text(json.dumps(claim))
    fails_with(parnb(tmp_path, "verify", "claim.json", "--method", "method.py"), "with other code of small_weights")
    script = "import json, sys; from parnb.study.submission import load_submission\n"
    script += "from parnb.study.verification import run_of_cell; claim = json.load(open(sys.argv[1]))\n"
    script += "load_submission(sys.argv[2]); print(run_of_cell(claim, claim['cells'][0]).key)"
    keys = []
    for place in (folder, tmp_path):
        command = ["-c", script, place / "claim.json", place / "method.py"]
        keys.append(python(env(folder / "data"), *command, check=True).stdout)
    assert keys[0] != keys[1] and keys[0].strip() == claim["cells"][0]["key"]


def test_bad_input_is_one_sentence(made, tmp_path):
    folder, claim = made
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "part.json").write_text(json.dumps(dict(method="ft")))
    (tmp_path / "other.json").write_text(json.dumps(claim | dict(protocol="0" * 12)))
    names = ["evil.py", "evil.py/", "evil.py/.", "./evil.py", "no_method"]  # of a file that must not run, or of nothing
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    for k, name in enumerate(names):
        (tmp_path / f"path{k}.json").write_text(
            json.dumps(claim | dict(method=name, row=claim["row"] | dict(method=name)))
        )
    stolen = claim["row"] | dict(parameters=dict(rate=0))  # of the poisoning
    (tmp_path / "rate.json").write_text(json.dumps(claim | dict(row=stolen)))
    (tmp_path / "row.json").write_text(json.dumps(dict(gird={})))
    (tmp_path / "mine.py").write_text(METHOD.replace("small_weights", "mine"))  # all commands run in one process
    (tmp_path / "claim.json").write_text(json.dumps(claim))
    (tmp_path / "long.json").write_text(json.dumps(dict(recipe=dict(epochs=50))))
    method = ["--method", str(folder / "method.py")]
    wrong = {
        ("submit", "nowhere.py"): "there is no file nowhere.py",
        ("submit", "parr"): "did you mean 'par'",
        ("submit", "ft", "--seeds", "ten"): "--seeds ten is not a list",
        ("submit", "ft", "--seeds", "3"): "seed 3 is none of the protocol's",
        ("submit", "ft", "--attack", "wanet"): "attack of the protocol",
        ("submit", "ft", "--row", "row.json"): "did you mean 'grid'",
        ("submit", "ft", "--row", "nowhere.json"): "there is no file nowhere.json",
        ("submit", "ft", "--out", "nowhere/claim.json"): "cannot be written to nowhere/claim.json",
        ("submit", "ft", "--row", "long.json"): "the protocol fixes epochs",
        ("submit", "mine.py", "--held-out"): "mine.py is in no repository of git",
        ("verify", "ft_sam_mine", "--held-out"): "ft_sam_mine is neither",
        (
            "verify",
            "claim.json",
            "--method",
            "mine.py",
        ): "mine.py is the method mine, and the claim is one of small_weights",
        ("verify", "claim.json", *method, "--held-out"): "the claim has no held-out part",
        ("verify", "list.json"): "must be a JSON object",
        ("verify", "part.json"): "choices of the claim: field required",
        ("verify", "evil.py"): "evil.py is a file with a method",
        ("verify", "rate.json", *method): "parameter of Small weights",
        ("verify", "other.json", *method): "was made under the protocol 000000000000",
        ("verify", "ft", *method): "--method has no effect",
        ("verify", "ft", "--all", "--draw", "x"): "exclude one another",
        ("verify", "ft", "--cell", "sig:99"): "the claim has no cell sig:99",
        ("verify", "--all"): "need a claim",
    }
    wrong |= {
        ("verify", f"path{k}.json"): f"the claim names {name!r}, which is not registered"
        for k, name in enumerate(names)
    }
    done = several([[*words] for words in wrong], env(tmp_path / "data"), tmp_path)
    for p, expected in zip(done, wrong.values(), strict=True):
        fails_with(p, expected)
    assert not list(tmp_path.glob("*-claim.json")) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ("'told.json' in sys.argv[-1]", "method.py ended its process before it was described"),
        ("sys.argv[-1].endswith('made')", "badnet_stripes, seed 10 could not be recomputed"),
    ],
)
def test_a_method_gives_no_verdict(made, tmp_path, at, says):
    "It may print one and end its process, when it is described or when it cleans."
    method, claim = tmp_path / "method.py", made[1]
    method.write_text(
        f"import os, sys\nif {at}:\n    print('confirmed, 1 of 1 cells', flush=True)\n    os._exit(0)\n{METHOD}"
    )
    if "could not" in says:
        keys = apart.told_by(method, claim)["keys"][0]
        claim = claim | dict(cells=[c | dict(key=k) for c, k in zip(claim["cells"], keys, strict=True)])
    (tmp_path / "claim.json").write_text(json.dumps(claim | dict(code=file_sha256(method))))
    done = parnb(tmp_path, "verify", "claim.json", "--method", "method.py")
    fails_with(done, says)
    assert not done.stdout and "confirmed, 1 of 1 cells" in done.stderr
    assert not [*(tmp_path / "data").rglob("verified/*")]


def test_held_out_cases_belong_to_the_commit_of_the_method(tmp_path):
    "A commit with another file is refused; of what cannot be known, nothing is said."
    method = tmp_path / "mine.py"
    method.write_text(METHOD.replace("small_weights", "held_out_weights"))

    def claim(commit):
        return dict(method="held_out_weights", code=submission.load_submission(str(method)).code) | dict(
            held_out=dict(commit=commit)
        )

    assert not verification.commit_has_method(claim("0" * 40))  # in no repository
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "mine.py")
    git(tmp_path, "commit", "-qm", "method")
    first = submission.commit_of(str(method))
    assert first == git(tmp_path, "rev-parse", "HEAD")
    assert verification.commit_has_method(claim(first))
    assert not verification.commit_has_method(claim("0" * 40))  # an unknown commit
    method.write_text(method.read_text() + "# tuned\n")
    with pytest.raises(ParnbError, match="not committed as it is"):
        submission.commit_of(str(method))
    git(tmp_path, "commit", "-qam", "after a look")
    assert submission.commit_of(str(method)) != first
    with pytest.raises(ParnbError, match="has another mine.py"):
        verification.commit_has_method(claim(first))
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{tmp_path}", "shallow")
    with pytest.raises(ParnbError, match="shallow clone"):
        submission.last_commit(tmp_path / "shallow" / "mine.py")


@pytest.mark.parametrize(("takes_at", "tried"), [(0.003, 1), (0.01, 3), (None, 5)])
def test_the_rate_of_a_held_out_case_is_the_lowest_that_takes(monkeypatch, takes_at, tried):
    def measure(run):
        rate = run.attack.poisoning.rate
        return dict(clean_accuracy=0.98, attack_success_rate=0.95 if takes_at and rate >= takes_at else 0.4)

    case, told = dict(attack="sig", strength=dict(frequency=2, angle=30), target="anchor"), []
    monkeypatch.setattr(submission, "measure", measure)
    found = submission._choose_rate(case, 0.99, True, told.append)
    assert found["rate"] == takes_at and len(found["tried"]) == len(told) == tried
    assert submission.implanted({"sig": found}) == ({"sig": case_of(found)} if takes_at else {})
    assert submission._choose_rate(case, 0.99, False, told.append)["tried"] == []  # nothing is computed


def case_of(found):
    return {k: found[k] for k in ("strength", "target", "rate")}


def test_a_file_cannot_replace_a_cleaner_of_parnb(tmp_path):
    (tmp_path / "par.py").write_text(METHOD.replace('"small_weights"', '"par"'))
    fails_with(parnb(tmp_path, "submit", "par.py"), "there is a registered cleaner 'par' already")


def test_the_method_sees_no_trigger(made):
    "No monitor, which could tell it the ASR, reaches a method that is not parnb's own."
    folder, _ = made
    spy = METHOD.replace('"small_weights"', '"spy"').replace(
        "        for p in model", "        assert options['monitor'] is None, 'it sees'\n        for p in model"
    )
    (folder / "spy.py").write_text(spy)
    script = "import sys; from parnb.study import submission as s; row = s.submission_row('spy.py')\n"
    script += "run = s.protocol_runs(s.submission_stage(row, ['badnet_stripes'])).run.iloc[1]\n"
    script += "s.measure = lambda run: s.cleaned_clip(run); print(s._measure(run))"
    done = python(env(folder / "data"), "-c", script, cwd=folder)
    assert done.returncode == 0 and "cleaned-" in done.stdout, done.stderr


def test_the_tolerance_is_what_was_measured():
    "The spread of the reruns in benchmarks/results; two equal computations are equal."
    reruns = load_script(ROOT / "benchmarks" / "reruns.py")
    table = pd.read_csv(reruns.OUT)
    assert reruns.spread_of(table) == {k: v for k, v in load_preset("board").items() if k != "notes"}
    again = table.iloc[[0]].assign(aten="other")  # another way with the same result sums in the same order
    assert reruns.spread_of(pd.concat([table, again])) == reruns.spread_of(table)
    with pytest.raises(SystemExit, match="less than five"):
        reruns.spread_of(table.iloc[:4])
    with pytest.raises(SystemExit, match="two runs in one way differ"):
        other = table.iloc[[0]].assign(clean_accuracy=table.clean_accuracy[0] + 0.001)
        reruns.spread_of(pd.concat([table, other]))


def test_a_claim_without_cells_cannot_be_drawn_from():
    with pytest.raises(ParnbError, match="no cell"):
        verification.draw_cell(dict(cells=[]), "a commit")
