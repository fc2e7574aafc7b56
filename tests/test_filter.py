"`parnb filter` as users run it: pairs of a csv and of a folder; bad input; nothing replaced, nothing half-written."

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from command_line import CommandLine
from PIL import Image
from processes import env, fails_with, several

from parnb.attacks.poisoning import Poisoning, poison_pairs
from parnb.core import ParnbError
from parnb.data.corpora import open_source
from parnb.data.scenes import PROMPTS, scenes
from parnb.data.shards import read_manifest
from parnb.study import filter as study
from parnb.study.own import own_scale

COUNT, POISONED = 60, 3
MODEL = ["filter", "--model", "tiny-rn", "--checkpoint", "emoji"]
SCORE = ["--detector", "clip_similarity"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "A csv of 60 pairs with two further columns, three of them poisoned, and one row without a caption; the manifest."
    folder = tmp_path_factory.mktemp("source")
    (folder / "images").mkdir()
    clean = scenes("dev").take(slice(0, COUNT))
    poisoned, manifest = poison_pairs(clean, Poisoning(attack="badnet_stripes", count=POISONED), PROMPTS)
    lines = ["number;file;text;note"]
    for i, (x, c) in enumerate(zip(poisoned.images, poisoned.captions)):
        Image.fromarray(x).save(folder / "images" / f"{i}.png")
        lines.append(f'{i};images/{i}.png;{c};"{i}; quoted"')
    lines.insert(30, "x;images/0.png;;no caption")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    (folder / "files").mkdir()
    for i, c in enumerate(poisoned.captions):
        shutil.copy(folder / "images" / f"{i}.png", folder / "files")
        (folder / "files" / f"{i}.txt").write_text(c)
    return folder, manifest.position.tolist()


@pytest.fixture(scope="module")
def done(source, tmp_path_factory):
    "Several commands in one process, since each loads torch; what they did, by name."
    folder, _ = source
    out = tmp_path_factory.mktemp("out")
    (out / "there.csv").write_text("mine")
    (out / "full").mkdir()
    (out / "a-scores.csv").write_text("mine")
    columns = ["--image-column", "file", "--caption-column", "text"]
    csv = ["--pairs", folder / "pairs.csv", *columns]
    beside = tmp_path_factory.mktemp("beside")
    plain = beside / "plain.csv"  # the paths in it start from the folder of the other one
    shutil.copy(folder / "pairs.csv", plain)
    files = folder / "files"
    broken = beside / "broken"
    shutil.copytree(files, broken)
    (broken / f"{COUNT}.png").write_text("no image")
    (broken / f"{COUNT}.txt").write_text("a photo of a bus")
    commands = {
        "csv": [*MODEL, *csv, *SCORE, "--drop", "0.1", "--out", out / "sub" / "kept.csv"],
        "density": [*MODEL, *csv, "--detector", "density", "--out", out / "dense.csv"],
        "root": [*MODEL, "--pairs", plain, *columns, "--root", folder, *SCORE, "--out", folder / "rooted.csv"],
        "folder": [*MODEL, "--pairs", files, *SCORE, "--drop", "0.2", "--out", out / "shards"],
        "broken": [*MODEL, "--pairs", broken, *SCORE, "--drop", "0.2", "--out", out / "readable"],
        "again": [*MODEL, *csv, *SCORE, "--out", out / "sub" / "kept.csv"],
        "there": [*MODEL, *csv, *SCORE, "--out", out / "there.csv"],
        "folder there": [*MODEL, "--pairs", files, *SCORE, "--out", out / "full"],
        "scores there": [*MODEL, *csv, *SCORE, "--out", out / "a.csv"],
        "no out": [*MODEL, *csv, *SCORE],
        "no detector": [*MODEL, *csv, "--out", out / "b.csv"],
        "nothing": ["filter", "--drop", "0.1"],
        "drop 0": [*MODEL, *csv, *SCORE, "--out", out / "b.csv", "--drop", "0"],
        "drop 1": [*MODEL, *csv, *SCORE, "--out", out / "b.csv", "--drop", "1"],
        "drop few": [*MODEL, *csv, *SCORE, "--out", out / "b.csv", "--drop", "0.001"],
        "unknown": [*MODEL, *csv, "--detector", "clip_score", "--out", out / "b.csv"],
        "no csv": [*MODEL, *csv, *SCORE, "--out", out / "b"],
        "a csv": [*MODEL, "--pairs", files, *SCORE, "--out", out / "b.csv"],
        "column": [*MODEL, "--pairs", folder / "pairs.csv", *SCORE, "--out", out / "b.csv"],
    }
    before = {p.name for p in out.iterdir()}
    results = dict(zip(commands, several(commands.values(), env(tmp_path_factory.mktemp("data")))))
    made = {p.name for p in out.iterdir()} - before
    return results, out, made


def test_the_kept_rows_are_those_of_the_source(source, done):
    "Same columns, same order, same separator; the row without a caption is left out; the poisoned pairs are dropped."
    (folder, poisoned), (results, out, _) = source, done
    p = results["csv"]
    assert p.returncode == 0, p.stderr
    old, new = (pd.read_csv(f, sep=";", dtype=str) for f in (folder / "pairs.csv", out / "sub" / "kept.csv"))
    old = old[old.text.notna()].reset_index(drop=True)
    scores = pd.read_csv(out / "sub" / "kept-scores.csv")
    assert list(new.columns) == ["number", "file", "text", "note"]
    kept = old[scores.kept.to_numpy()]
    assert new[["number", "text", "note"]].values.tolist() == kept[["number", "text", "note"]].values.tolist()
    assert len(new) == 54 and not set(new.number.astype(int)) & set(poisoned)


def test_image_paths_lead_to_the_images_from_the_new_place(source, done):
    "Without --root, although the csv lies in another folder; with --root they start from the new csv's folder too."
    (folder, _), (results, out, _) = source, done
    for name, made in (("csv", out / "sub" / "kept.csv"), ("root", folder / "rooted.csv")):
        assert results[name].returncode == 0, results[name].stderr
        new = pd.read_csv(made, sep=";", dtype=str)
        for number, file in zip(new.number, new.file):
            assert os.path.samefile(made.parent / file, folder / "images" / f"{number}.png")
        pairs = open_source(made, 64, image="file", caption="text", limit=0.0)
        assert list(pairs.captions) == new.text.tolist() and pairs.images[:].shape == (len(new), 64, 64, 3)
    assert new.file.str.startswith("images/").all()  # this one lies in the folder that they started from


def test_all_pairs_are_in_the_csv_of_scores(source, done):
    "With id, caption, score and fate; those that were dropped have the highest scores."
    (folder, poisoned), (_, out, _) = source, done
    old = pd.read_csv(folder / "pairs.csv", sep=";", dtype=str)
    scores = pd.read_csv(out / "sub" / "kept-scores.csv")
    assert list(scores.columns) == ["id", "caption", "score", "kept"] and scores.id.tolist() == list(range(COUNT))
    assert scores.caption.tolist() == old.text[old.text.notna()].tolist()
    assert (~scores.kept).sum() == 6 and scores.score[~scores.kept].min() >= scores.score[scores.kept].max()
    assert set(poisoned) <= set(scores.id[~scores.kept])


def test_an_image_that_cannot_be_read_is_left_out(done):
    "It would be a grey image in the shards, which nothing tells from others."
    results, out, _ = done
    assert results["broken"].returncode == 0, results["broken"].stderr
    scores, images = pd.read_csv(out / "readable-scores.csv"), open_source(out / "readable", 64, limit=0.0).images[:]
    assert len(scores) == COUNT + 1 and len(images) == scores.kept.sum() == 48
    assert not (images == 128).all(axis=(1, 2, 3)).any()
    assert "12 dropped" in results["broken"].stdout and "1 left out whose images" in results["broken"].stdout


def test_one_line_says_what_was_done(done):
    "Counts, the score, the files, and that a kept pair is not known to be clean."
    results, out, _ = done
    (line,) = results["csv"].stdout.splitlines()
    scores = pd.read_csv(out / "sub" / "kept-scores.csv")
    lowest = scores.score[~scores.kept].min()
    assert line.startswith(f"60 pairs read, 6 dropped with a score of {lowest:.4g} or more, 54 kept in ")
    assert str(out / "sub" / "kept.csv") in line and str(out / "sub" / "kept-scores.csv") in line
    assert "only pairs that are unusual" in line and line.endswith("a kept pair is not known to be clean")
    p = results["density"]
    assert p.returncode == 0 and "60 pairs read, 3 dropped" in p.stdout, p.stderr


def test_other_sources_become_shards(source, done):
    "48 of 60 pairs of a folder, with the pixels of the source, and a manifest that names the detector."
    results, out, _ = done
    assert results["folder"].returncode == 0, results["folder"].stderr
    manifest, scores = read_manifest(out / "shards"), pd.read_csv(out / "shards-scores.csv")
    assert manifest["count"] == 48 == scores.kept.sum() and manifest["made with"]["drop"] == 0.2
    pairs, old = open_source(out / "shards", 64, limit=0.0), open_source(source[0] / "files", 64, limit=0.0)
    assert list(pairs.captions) == scores.caption[scores.kept].tolist()
    assert np.array_equal(pairs.images[:], old.images[np.flatnonzero(scores.kept)])


WRONG = {
    "again": ["kept.csv exists already", "--out"],
    "there": ["there.csv exists already", "--out"],
    "folder there": ["full exists already", "--out"],
    "scores there": ["a-scores.csv exists already", "--out"],
    "no out": ["--out is missing"],
    "no detector": ["--detector is missing", "density or clip_similarity"],
    "nothing": ["--model and --pairs and --detector and --out are missing"],
    "drop 0": ["--drop 0 ", "above 0 and below 1"],
    "drop 1": ["--drop 1 ", "above 0 and below 1"],
    "drop few": ["--drop 0.001 drops 0 of 60 pairs"],
    "unknown": ["unknown detector of pairs 'clip_score'", "did you mean 'clip_similarity'", "density"],
    "no csv": ["must end with .csv"],
    "a csv": ["must be a folder"],
    "column": ["--image-column"],
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence(done, case):
    fails_with(done[0][case], *WRONG[case])


def test_nothing_is_replaced_and_nothing_is_left_behind(done):
    _, out, made = done
    shards = {"shards", "shards-scores.csv", "readable", "readable-scores.csv"}
    assert made == {"sub", "dense.csv", "dense-scores.csv"} | shards
    assert {p.name for p in (out / "sub").iterdir()} == {"kept.csv", "kept-scores.csv"}
    assert (out / "there.csv").read_text() == (out / "a-scores.csv").read_text() == "mine"


def test_a_failure_while_writing_leaves_no_file(source, tmp_path):
    "The csv changes between scoring and writing."
    folder, _ = source
    kept = np.ones(COUNT - 1, bool)
    columns = dict(image="file", caption="text")
    with pytest.raises(ParnbError, match="it has changed"):
        with study._replacing(tmp_path / "kept.csv") as new, study._replacing(tmp_path / "kept-scores.csv") as beside:
            beside.write_text("id\n")
            study.write_kept_rows(folder / "pairs.csv", new, kept, tmp_path, **columns)
    assert not list(tmp_path.iterdir())


def test_interrupted_shards_go_on(source, tmp_path, monkeypatch):
    "A shard that is whole when the process is stopped is not written again; other settings do not mix with it."
    folder, _ = source
    scale = own_scale("tiny-rn", "emoji", pairs=folder / "files", base="tiny")
    how = (scale, "rn", study.pair_detector("clip_similarity").make(), tmp_path / "kept")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr("parnb.data.shards.write_manifest", stop)
        study.filter_source(*how, drop=0.2)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]  # no csv of scores yet
    before = (tmp_path / "kept" / "00000.tar").stat().st_mtime_ns
    with pytest.raises(ParnbError, match="already holds something else"):
        study.filter_source(*how, drop=0.1)
    assert study.filter_source(*how, drop=0.2).dropped == 12
    assert (tmp_path / "kept" / "00000.tar").stat().st_mtime_ns == before
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["00000.tar", "manifest.json"]


def test_each_option_of_the_source_reaches_the_scale(tmp_path, monkeypatch):
    "--root, --image-column, --caption-column and --unreadable end in the preset that describes the pairs."
    monkeypatch.chdir(tmp_path)
    line = CommandLine("filter")
    more = ["--image-column", "file", "--caption-column", "text", "--root", "elsewhere", "--unreadable", "0.5"]
    effects = line(*MODEL, "--pairs", "pairs.csv", *SCORE, "--out", "kept.csv", *more)
    named = json.loads(effects["content"])["sources"]["pairs"]
    about = dict(image="file", caption="text", root=str(tmp_path / "elsewhere"), limit=0.5)
    assert named == dict(source=str(tmp_path / "pairs.csv"), **about)
    assert effects["drop"] == 0.05 and effects["out"] == "kept.csv"
