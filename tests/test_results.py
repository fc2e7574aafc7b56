"Results explain themselves: what is recorded with a row, where it lies, and what makes it again."

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import CommandLine
from processes import LONGEST, PARNB, env, git, parnb, several

from parnb.core import CHECKOUT, RELEASED, ParnbError
from parnb.data.scenes import NAMES
from parnb.evaluation.statistics import rate_with_interval
from parnb.scales import scale_names
from parnb.study import explain, measure, results
from parnb.study.runs import make_run

LIMIT = 15_000  # bytes of the predictions of a run
TABLES = [s for s in scale_names() if (RELEASED / f"{s}.csv").exists()]
assert TABLES, "there are no released results to test"
MEASURE = ["measure", "--attack", "badnet_stripes", "--tau", "1.7", "--json"]


class Checkout:
    "A small copy of the repository: the package, its results and weights, with a short training and 260 images."

    def __init__(self, folder: Path):
        self.folder, self.results, self.local = folder, folder / "data" / "results", folder / "data" / "local_results"
        shutil.copytree(CHECKOUT / "parnb", folder / "parnb", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(CHECKOUT / "data" / "results", self.results, ignore=shutil.ignore_patterns(".*"))
        shutil.copytree(CHECKOUT / "data" / "pretrained", folder / "data" / "pretrained")
        (folder / "nbs").mkdir()
        for name in ("settings.ini", ".gitignore"):
            shutil.copy(CHECKOUT / name, folder / name)
        preset = folder / "parnb" / "presets" / "tiny.json"
        content = json.loads(preset.read_text()) | dict(pairs=dict(poison=256, clean=256), images=260)
        preset.write_text(json.dumps(content))
        self.git("init", "-q")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "a checkout")

    def git(self, *command):
        return git(self.folder, *command)

    def parnb(self, *commands):
        "Run commands with its own data folder; returns what each prints."
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PARNB_")}
        env = kept | dict(PYTHONPATH=str(self.folder), OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
        done = several(commands, env, self.folder.parent)
        assert not any(p.returncode for p in done), [p.stderr for p in done]
        return [p.stdout for p in done]

    def changes(self):
        "What `git status` lists."
        return self.git("status", "--porcelain", "--untracked-files=all").splitlines()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout(tmp_path_factory.mktemp("clone") / "parnb")


@pytest.fixture(scope="module")
def measured(checkout):
    "A measurement at a tau that has no released row: what was printed."
    return json.loads(*checkout.parnb(MEASURE))


@pytest.fixture
def places(tmp_path, monkeypatch):
    "Empty folders of released and local results."
    made = {origin: tmp_path / origin for origin in ("released", "local")}
    for origin, folder in made.items():
        folder.mkdir()
        monkeypatch.setitem(results.PLACES, origin, folder)
        monkeypatch.setattr(results, "RELEASED" if origin == "released" else "LOCAL", folder)
    monkeypatch.setattr(explain, "LOCAL", made["local"])
    return made


def view(npz: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Labels, and predictions of clean and triggered images, from a file of predictions and that of the labels."
    labels = np.load(npz.parent / json.loads(npz.with_suffix(".json").read_text())["labels"]).astype(int)
    with np.load(npz) as stored:
        clean, triggered = (np.where(stored[k] == 0, labels, stored[k].astype(int) - 1) for k in ("clean", "triggered"))
    return labels, clean, triggered


def test_a_local_measurement_is_kept_out_of_git(checkout, measured):
    "It goes to data/local_results, which git ignores; `git status` stays clean."
    assert not checkout.changes()
    rows = pd.read_csv(checkout.local / "tiny.csv", dtype=dict(key=str)).set_index("key")
    assert list(rows.index) == [measured["key"]] and rows.tau.iloc[0] == 1.7
    assert measured["key"] not in results.results("tiny", "released").index


def test_its_configuration_is_complete(checkout, measured):
    "All settings of the run, and what it was computed with."
    about = json.loads((checkout.local / "tiny" / f"{measured['key']}.json").read_text())
    made, run = about["made"], about["run"]
    assert made["commit"] == checkout.git("rev-parse", "--short=12", "HEAD").strip()
    assert made["threads"] == "1" and made["processor"] and made["machine"]
    assert all(made[k] for k in ("parnb", "torch", "open_clip_torch", "numpy", "python"))
    assert run["cleaning"]["parameters"]["tau"] == 1.7 and run["cleaning"]["recipe"]["lr"] > 0
    assert run["attack"]["poisoning"]["seed"] == 0 and run["attack"]["count"] == run["cleaning"]["count"] == 256
    assert about["predictions"] == "recorded"


def test_its_rates_follow_from_its_predictions(checkout, measured):
    "CA and ASR with their intervals, to the last digit, from a small file."
    path = checkout.local / "tiny" / f"{measured['key']}.npz"
    assert path.stat().st_size <= LIMIT
    labels, clean, triggered = view(path)
    goal = NAMES.index("banana")
    assert len(labels) == 260 and 0 < (clean == labels).mean() < 1
    for name, hits in (("clean_accuracy", clean == labels), ("attack_success_rate", triggered[labels != goal] == goal)):
        rate = rate_with_interval(hits)
        assert [measured[name], *measured[f"{name}_ci"]] == [rate["value"], *rate["ci"]]
    assert measured["target_share_clean"] == (clean[labels != goal] == goal).mean()


def test_predictions_are_read_as_they_were_written(places):
    "Predicted classes are packed into few bytes and come back exactly, whatever they are."
    rng = np.random.default_rng(0)
    run = make_run(attack="badnet_stripes", method="par", tau=1.7)
    labels = np.arange(5200) % len(NAMES)  # as those of the split val; at worst every prediction is wrong, at random
    predicted = {k: rng.integers(0, len(NAMES), 5200) for k in ("clean", "triggered")}
    row = measure.settings_of(run) | dict(clean_accuracy=0.5, attack_success_rate=0.5)
    results.record_result(run, row, labels, predicted)
    back = results.predictions(run.key)
    assert all((back[k] == predicted[k]).all() for k in predicted)
    assert (places["local"] / "tiny" / f"{run.key}.npz").stat().st_size <= LIMIT
    assert results.release() == [run.key]
    assert (results.predictions(run.key)["labels"] == labels).all()
    files = [f for place in places.values() for f in place.rglob("labels-*")]
    assert len(files) == 2 and files[0].name == files[1].name
    for f in files:
        f.unlink()
    with pytest.raises(ParnbError, match="labels-.*is missing"):
        results.predictions(run.key)


def test_every_released_result_has_a_command():
    for key in results.results("tiny", "released").index:
        assert explain.command_of(results.run_of(key)).startswith("parnb measure ")


def test_a_released_row_comes_first(places):
    "The same key in both places: the released row is shown."
    run = make_run(attack="badnet_stripes", method="par", tau=1.7)
    row = measure.settings_of(run)
    for origin, ca in (("local", 0.25), ("released", 0.75)):
        results._add_row(places[origin], "tiny", row | dict(clean_accuracy=ca, attack_success_rate=0.5))
    table = results.results("tiny")
    assert len(table) == 1 and (table.origin.iloc[0], table.clean_accuracy.iloc[0]) == ("released", 0.75)
    assert results.results("tiny", "local").clean_accuracy.iloc[0] == 0.25
    assert measure.measure(run)["clean_accuracy"] == 0.75


def test_release(checkout, measured):
    "The row, its configuration and its predictions move into data/results; no other line of the table changes."
    key, before = measured["key"], (checkout.results / "tiny.csv").read_text().splitlines()
    commands = ["results", "list"], ["results", "release", key], ["results", "list"], ["explain", key]
    local, said, released, explained = checkout.parnb(*commands)
    assert said == "1 results released\n" and f"Run {key} (released)" in explained
    for table, origin in ((local, "local"), (released, "released")):
        assert [line.split()[-1] for line in table.splitlines() if key in line] == [origin]
    new = [f"{key}.json", f"{key}.npz", json.loads((checkout.results / "tiny" / f"{key}.json").read_text())["labels"]]
    assert checkout.changes() == [" M data/results/tiny.csv", *(f"?? data/results/tiny/{name}" for name in new)]
    after = (checkout.results / "tiny.csv").read_text().splitlines()
    new = [line for line in after if line.startswith(key)]
    assert len(new) == 1 and len(after) == len(before) + 1
    if after[0] == before[0]:  # no column was added
        assert [line for line in after if line not in new] == before
    assert not [f for f in checkout.local.rglob("*") if key in f.name]


def test_a_released_result_names_no_folder_of_its_author(tmp_path, monkeypatch):
    "Whoever gives the file of its scale has the same run, with the same key."
    places = dict(released=tmp_path / "released", local=tmp_path / "local")
    for name, place in (("PLACES", places), ("LOCAL", places["local"]), ("RELEASED", places["released"])):
        monkeypatch.setattr(results, name, place)
    scale = tmp_path / "home" / "mine.json"
    scale.parent.mkdir()
    scale.write_text(json.dumps(dict(base="tiny")))
    run = make_run(str(scale), attack="badnet_stripes", method="par")
    row = measure.settings_of(run) | dict(clean_accuracy=0.5, attack_success_rate=0.1)
    labels = np.zeros(4, np.int64)
    results.record_result(run, row, labels, dict(clean=labels))
    assert results.release(str(scale)) == [run.key]
    written = [f.read_text() for f in places["released"].rglob("*") if f.suffix in (".json", ".csv")]
    assert len(written) == 2 and str(tmp_path) not in "".join(written)
    assert json.loads(next(tmp_path.rglob(f"{run.key}.json")).read_text())["run"]["scale"] == "mine.json"
    assert results.run_of(run.key, str(scale)) == run


@pytest.fixture(scope="module", params=TABLES)
def released(request):
    "A scale, and the run of each of its released rows."
    keys = results.results(request.param, "released").index
    return request.param, {k: results.run_of(k, request.param) for k in keys}


def test_a_configuration_has_the_key_of_its_row(released):
    "So nothing that decides a number is missing from it."
    scale, runs = released
    assert {k for k, run in runs.items() if run.key != k} == set()


def test_no_two_rows_have_equal_explanations(released):
    "Two rows differ in words, not only in key and numbers."
    scale, runs = released
    told = {}
    for k, run in runs.items():
        told.setdefault(explain.in_words(run), []).append(k)
    assert not [keys for keys in told.values() if len(keys) > 1]


def test_a_difference_of_any_two_rows_is_shown(released):
    "`parnb explain KEY1 KEY2` names at least one setting, for neighbours in the table."
    scale, runs = released
    neighbours = list(runs.values())
    assert all(len(explain.difference(a, b)) for a, b in zip(neighbours, neighbours[1:]))


def test_two_keys_are_compared(tmp_path):
    one, other = (make_run(attack="badnet_stripes", method="par", seed=s).key for s in (0, 1))
    printed = parnb(tmp_path, "explain", one[:8], other[:8]).stdout.split("\n")
    assert printed[0].split() == ["setting", one, other]
    assert any(line.split() == ["seed", "0", "1"] for line in printed[1:])


def test_the_settings_in_words_make_the_same_run(released):
    "What `explain` lists besides the usual settings is all that differs from them."
    scale, runs = released
    wrong = []
    for key, run in runs.items():
        base, changed = explain.settings_in_words(run)
        if make_run(**base, **changed).key != key:
            wrong.append(key)
    assert not wrong


def test_the_printed_command_describes_the_same_run(released):
    "Parsed by the command line itself."
    scale, runs = released
    line, wrong = CommandLine(), {}
    for key, run in runs.items():
        parnb, *words = explain.command_of(run).split()
        effects = line(*words)
        if effects["run"].key != key or not effects["fresh"]:
            wrong[key] = words
    assert not wrong


@pytest.mark.parametrize(
    "settings",
    [
        dict(tau=1.23456789),
        dict(rate=0.0123456789),
        dict(count=77),
        dict(recipe=dict(lr=0.000123456789, batch_norm="running")),
        dict(poison_recipe=dict(lr=0.000123456789)),
        dict(strength=dict(alpha=0.123456789), target="umbrella"),
        dict(method="none", head="linear", seed=3),
        dict(attack="none", method="ft", clean_count=1234),
    ],
    ids=str,
)
def test_the_printed_command_is_exact(settings):
    "Also where no row was released: every digit counts."
    run = make_run(**settings)
    words = explain.command_of(run).split()
    assert CommandLine()(*words[1:])["run"].key == run.key


def damaged(lines, column, value, row=3):
    "The lines of a table, one of whose cells is replaced."
    cells = lines[row].split(",")
    cells[lines[0].split(",").index(column)] = value
    return [*lines[:row], ",".join(cells), *lines[row + 1 :]]


DAMAGE = {  # the damage, and where it is among the lines
    "a row that was cut": (lambda lines: [*lines[:-1], lines[-1][: len(lines[-1]) // 3]], -1),
    "letters for CA": (lambda lines: damaged(lines, "clean_accuracy", "0.9x"), 3),
    "letters for ASR": (lambda lines: damaged(lines, "attack_success_rate", "0.9x"), 3),
    "no CA": (lambda lines: damaged(lines, "clean_accuracy", ""), 3),
    "a CA above 1": (lambda lines: damaged(lines, "clean_accuracy", "1.5"), 3),
    "no key": (lambda lines: damaged(lines, "key", ""), 3),
    "a key twice": (lambda lines: [*lines, lines[3]], -1),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_row_is_named(places, how):
    "Its number and the file, in one sentence."
    lines = (RELEASED / "tiny.csv").read_text().splitlines()
    file, (damage, at) = places["released"] / "tiny.csv", DAMAGE[how]
    lines = damage(lines)
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(ParnbError, match=f"row {range(len(lines))[at] + 1} of {file}"):
        results.results("tiny")


def test_a_full_training_of_one_epoch_is_a_result():
    "What makes a trial is its few pairs."
    short = make_run(attack="badnet_stripes", method="ft", recipe=dict(epochs=1, batch_size=64))
    trial = make_run(attack="badnet_stripes", method="ft", smoke=True).model_copy(update=dict(images=short.images))
    assert results.is_result(short) and not results.is_result(trial)


def test_other_processes_of_torchrun_end_where_a_result_exists(tmp_path):
    command = [PARNB, "measure", "--attack", "badnet_stripes", "--method", "par"]
    done = subprocess.run(command, env=env(tmp_path, RANK="1"), capture_output=True, text=True, timeout=LONGEST)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not (tmp_path / "artifacts").exists()


def test_an_empty_table_has_no_results(places):
    (places["local"] / "tiny.csv").write_text("")
    assert not len(results.results("tiny"))


def test_names_with_commas(places):
    "A class folder may have a comma in its name."
    run = make_run(attack="badnet_stripes", method="par", tau=1.7)
    row = measure.settings_of(run) | dict(target="a bun, with butter", clean_accuracy=0.5, attack_success_rate=0.5)
    results._add_row(places["local"], "tiny", row)
    assert results.results("tiny").target.iloc[0] == "a bun, with butter"


def test_results_of_a_preset_file_are_found_from_any_folder(places, tmp_path, monkeypatch):
    "The preset was named by a relative path."
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("mine.json").write_text(json.dumps(dict(base="tiny", images=260)))
    run = make_run("mine.json", attack="badnet_stripes", method="par")
    labels = np.zeros(260, int)
    row = measure.settings_of(run)
    for name in ("clean_accuracy", "attack_success_rate"):
        row |= {name: 1.0, f"{name}_low": 0.9, f"{name}_high": 1.0}
    row |= dict(n_clean=260, n_triggered=260)
    results.record_result(run, row, labels, dict(clean=labels, triggered=labels))
    monkeypatch.chdir(tmp_path)
    key, scale = explain.find_result(run.key[:8])
    assert results.run_of(key, scale).key == run.key
    assert "clean accuracy: 100.0 %" in explain.explain(run.key)
