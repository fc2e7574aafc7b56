"""Lost rows and images are reported, and changed data is noticed.

Flawed csv files, folders and shards; images that cannot be read; a part of ImageNet; presets that inherit too much."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from processes import env, fails_with, several
from small_scale import make_data

from parnb.attacks.poisoning import Poisoning, poison_pairs
from parnb.core import CACHE, ParnbError
from parnb.data import images, unusable
from parnb.data.corpora import open_source
from parnb.data.csv_rows import read_rows
from parnb.data.images import Images, losses
from parnb.data.labelled import open_captions, open_classes
from parnb.data.unusable import Lost
from parnb.study.flags import open_folder
from parnb.study.scale_data import data_of

ALPHABET = list("abcdefg ,;\"'\n") + ["\r\n", "é", ".jpg"]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path_factory):
    "Each test sees the warnings as a new process does, and has its own cache, since other processes write there."
    unusable._told.clear()
    cache = tmp_path_factory.mktemp("cache")
    for module in (unusable, images, sys.modules[__name__]):
        monkeypatch.setattr(module, "CACHE", cache)


def write_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 3), i % 250, np.uint8)).save(folder / name)


def write_csv(folder, rows, encoding="utf-8"):
    "A csv of lines as they are, beside its 40 images."
    write_images(folder, [f"{i}.png" for i in range(40)])
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(f"{r}\n" for r in rows), encoding=encoding)
    return folder / "pairs.csv"


def test_a_good_csv_is_read_as_pandas_reads_it(tmp_path):
    "Whatever its captions contain, with and without a byte-order mark, whichever separator and quoting."
    rng = np.random.default_rng(0)
    captions = ["x" + "".join(rng.choice(ALPHABET, rng.integers(1, 20))) + "x" for _ in range(2000)]
    table = pd.DataFrame(dict(n=range(2000), image=[f"a b/{i}.png" for i in range(2000)], caption=captions))
    for k, sep in enumerate(",\t;|" * 2):
        options = dict(sep=sep, index=False, encoding=("utf-8", "utf-8-sig")[k % 2], quoting=int(k > 3))
        table.to_csv(tmp_path / "t.csv", **options)
        read = pd.read_csv(tmp_path / "t.csv", sep=sep, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        assert [*read_rows(tmp_path / "t.csv", "image", "caption", sep)] == [*zip(read.image, read.caption)]


@pytest.mark.parametrize("flaw", ['{i}.png,"a fox', "{i}.png,a fox, running", "{i}.png", "{i}.png, ", ",a fox"])
def test_a_flawed_row_costs_no_other_row(tmp_path, flaw):
    "Wherever it stands, and whether the rows around it are in quotes or not."
    rng = np.random.default_rng(1)
    good = [(f"{i}.png", ("a dog", "a dog, running", 'a "big" dog', "two\nlines")[rng.integers(4)]) for i in range(60)]
    lines = ["{},{}".format(p, f'"{t}"'.replace('"big"', '""big""') if t != "a dog" else t) for p, t in good]
    for at in (0, 17, 18, 59):
        rows = [*lines[:at], flaw.format(i=at), *lines[at + 1 :]]
        (tmp_path / "t.csv").write_text("image,caption\n" + "\n".join(rows) + "\n")
        found = [*read_rows(tmp_path / "t.csv", "image", "caption", ",")]
        assert [r for r in found if not isinstance(r, Lost)] == good[:at] + good[at + 1 :]
        (lost,) = [r for r in found if isinstance(r, Lost)]
        assert lost.place == f"line {2 + sum(1 + line.count(chr(10)) for line in lines[:at])}"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_one_bad_row_of_twenty_is_a_warning(tmp_path, capsys, encoding):
    "It is named with its line, and the record of a training gets it, poisoned pairs included."
    path = write_csv(tmp_path, [f"{i}.png,{'' if i == 7 else 'a photo of a fox'}" for i in range(20)], encoding)
    pairs = open_source(path, 8)
    assert len(pairs) == 19 and pairs.captions[0] == "a photo of a fox"
    told = capsys.readouterr().err
    assert "WARNING: 1 of 20 pairs of pairs.csv cannot be used" in told and "the caption is empty (line 9)" in told
    expected = dict(lost=1, lost_rows=["line 9: the caption is empty"])
    poisoned, _ = poison_pairs(pairs, Poisoning(attack="badnet_rand", count=2, target="banana"))
    assert losses(pairs.images) == losses(poisoned.images) == expected
    open_source(path, 8)
    assert not capsys.readouterr().err  # told once
    with pytest.raises(ParnbError, match="1 of 20 pairs"):
        open_source(path, 8, limit=0)


def test_many_unquoted_commas_are_an_error(tmp_path):
    "The captions would be cut at the comma. A file lists every line."
    path = write_csv(tmp_path, [f"{i}.png,a fox{', running' * (i % 4 == 0)}" for i in range(40)])
    with pytest.raises(ParnbError, match="10 of 40 pairs.*must be in quotes.*line 2, line 6, line 10 and 7 more"):
        open_source(path, 8)
    assert len((CACHE / "unreadable.txt").read_text().splitlines()) == 10
    assert len(open_source(path, 8, limit=0.3)) == 30


def test_an_index_of_an_older_version_is_written_again(tmp_path):
    "It may lack rows, or hold captions that were cut."
    path = write_csv(tmp_path, [f"{i}.png,a fox" for i in range(20)])
    open_source(path, 8)
    index, lost = sorted(CACHE.glob("index-*"))
    lost.unlink()
    index.unlink()
    index.write_bytes(b"of an older version")
    assert len(open_source(path, 8)) == 20 and lost.exists()


def test_a_few_broken_images(tmp_path, capsys):
    "Missing, empty, truncated, or of another kind: grey, counted and named; the limit is that of the whole set."
    path = write_csv(tmp_path, [f"{i}.png,a fox" for i in range(40)])
    (tmp_path / "3.png").unlink()
    (tmp_path / "5.png").write_bytes(b"")
    (tmp_path / "9.png").write_text("<html>404</html>")
    pairs = open_source(path, 8)
    assert (pairs.images[:8][3] == 128).all() and (pairs.images[8:][0] == 8).all()
    told = capsys.readouterr().err.splitlines()
    assert "2 of 8 images" in told[0] and "the file is missing" in told[0] and "3.png" in told[0]
    assert "3 of 40 images" in told[1] and "the file holds no image (5.png, 9.png)" in told[1] and len(told) == 2
    assert losses(pairs.images)["unreadable"] == 3
    (tmp_path / "11.png").write_bytes(b"")
    with pytest.raises(ParnbError, match="4 of 40 images cannot be used"):
        open_source(path, 8).images[:]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_or_a_device_among_the_images(tmp_path):
    "Neither is read, which would never begin or never end; a link to no file is an image that is missing."
    for name in ("cat", "dog"):
        write_images(tmp_path / "val" / name, [f"{i}.png" for i in range(5)])
    os.mkfifo(tmp_path / "val" / "cat" / "5.png")
    (tmp_path / "val" / "dog" / "5.png").symlink_to("/dev/zero")
    (tmp_path / "val" / "dog" / "6.png").symlink_to("nowhere.png")
    names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(6)] + ["dog/6.png"]
    told = [dict(filename=n, split="test", sentences=[dict(raw="a cat")] * 5) for n in names]
    (tmp_path / "captions.json").write_text(json.dumps(dict(images=told)))
    opened = (
        open_classes(tmp_path / "val", 8, limit=0.3),
        open_folder(tmp_path / "val", 8, limit=0.3),
        open_captions(tmp_path / "captions.json", tmp_path / "val", 8, limit=0.3),
    )
    for pairs in opened:
        assert len(pairs) == 13 and (pairs.images[:][[5, 11, 12]] == 128).all()
        reasons = [pairs.images.bad[i].reason for i in (5, 11, 12)]
        assert reasons == ["it is no regular file", "it is no regular file", "the file is missing"]


def test_names_that_are_not_in_utf8(tmp_path, capsys):
    "A pair and an image of a class work; the images of a class without a name that can be read are lost."
    cafe, green = os.fsdecode(b"caf\xe9"), os.fsdecode(b"gr\xfcn")
    try:
        write_images(tmp_path / "pairs", ["0.png", "1.png", f"{cafe}.png"])
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    for name in ("cat", "dog"):
        shutil.copytree(tmp_path / "pairs", tmp_path / "val" / name)
    write_images(tmp_path / "val" / green, ["0.png"])
    for f in sorted((tmp_path / "pairs").iterdir()):
        f.with_suffix(".txt").write_text("a fox")
    pairs = open_source(tmp_path / "pairs", 8)
    assert pairs.images[:][:, 0, 0, 0].tolist() == [0, 1, 2]
    val = open_classes(tmp_path / "val", 8)
    assert (val.names, val.images[:][:, 0, 0, 0].tolist()) == (("cat", "dog"), [0, 1, 2] * 2)
    reason = "the name of its class folder is not in UTF-8"
    assert f"{reason} (gr\\udcfcn/0.png)" in capsys.readouterr().err
    with pytest.raises(ParnbError, match=reason):
        open_classes(tmp_path / "val", 8, limit=0)
    assert (CACHE / "unreadable.txt").read_text() == f"gr\\udcfcn/0.png: {reason}\n"


@pytest.mark.parametrize("error", [TypeError("odd"), EOFError(), IndexError("range"), MemoryError()])
def test_whatever_a_reader_raises(error):
    "Pillow's readers raise errors of many kinds for damaged files."

    def read(i):
        if i == 4:
            raise error
        return f"{i}", Image.new("RGB", (8, 8))

    images = Images(read, 20, 8)
    assert (images[:][4] == 128).all() and list(images.bad) == [4]


def test_a_part_of_imagenet_has_names(tmp_path):
    "999 folders, and 1000; names that were given stay."
    import open_clip
    from timm.data import ImageNetInfo

    ids, names = ImageNetInfo("imagenet-1k").label_names(), open_clip.IMAGENET_CLASSNAMES
    write_images(tmp_path, ["0.png"])
    for i in ids:
        (tmp_path / "val" / i).mkdir(parents=True)
        os.link(tmp_path / "0.png", tmp_path / "val" / i / "0.png")
    assert open_classes(tmp_path / "val", 8).names == tuple(names)
    shutil.rmtree(tmp_path / "val" / ids[134])
    part = open_classes(tmp_path / "val", 8)
    assert part.names == tuple(names[:134] + names[135:]) and len(part) == 999
    given = [f"class {i}" for i in range(999)]
    assert open_classes(tmp_path / "val", 8, given).names == tuple(given)


def scale(folder, **content):
    "The data of a preset file in a folder."
    (folder / "mine.json").write_text(json.dumps(dict(base="paper") | content))
    return data_of(str(folder / "mine.json"))


def test_images_that_change_under_a_csv(tmp_path):
    "Replaced, edited to the same size, deleted: the key differs. A copy and other times: it does not."
    write_csv(tmp_path / "a", [f"{i}.png,a fox" for i in range(40)])
    keys = {scale(tmp_path / "a", sources=dict(pairs="pairs.csv")).key("clean")}
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    data = scale(tmp_path / "b", sources=dict(pairs="pairs.csv"))
    for f in (tmp_path / "b").iterdir():
        os.utime(f, (1, 1))
    assert {data.key("clean")} == keys
    one = tmp_path / "b" / "39.png"
    content = one.read_bytes()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(one)
    keys.add(data.key("clean"))
    one.write_bytes(content[:-20] + bytes(20))
    os.utime(one, (2, 2))
    keys.add(data.key("clean"))
    one.unlink()
    keys.add(data.key("clean"))
    assert len(keys) == 4
    one.write_bytes(content)
    assert data.key("clean") in keys


def test_brackets_in_the_name_of_a_folder(tmp_path):
    "They are no pattern: the csv opens, and images that change are noticed."
    assert len(open_source(write_csv(tmp_path / "b[1]", [f"{i}.png,a fox" for i in range(20)]), 8)) == 20
    for name in ("cat", "dog"):
        write_images(tmp_path / "b[1]" / "val" / name, ["0.png", "1.png"])
    data = scale(tmp_path, sources=dict(images=str(tmp_path / "b[1]" / "val")))
    before = data.key("val")
    os.utime(tmp_path / "b[1]" / "val" / "cat" / "0.png", (1, 1))
    assert data.key("val") != before


def test_a_preset_whose_classes_lack_the_targets_of_its_base(tmp_path, capsys):
    from parnb.study.scale_data import fitting_experiments

    for name in ("banana", "cat"):
        write_images(tmp_path / "val" / name, ["0.png"])
    scale(tmp_path, sources=dict(images="val"))
    kept = fitting_experiments(str(tmp_path / "mine.json"))
    assert "tab09_targets" not in kept and "tab01_main" in kept
    assert "tab09_targets (it has no class 'umbrella')" in capsys.readouterr().err
    mine = dict(tab09_targets=[dict(attack="blended_text", target="umbrella")])
    scale(tmp_path, sources=dict(images="val"), experiments=mine)
    assert "tab09_targets" in fitting_experiments(str(tmp_path / "mine.json"))  # one's own are left to fail


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    "What `measure` does with one and with five broken images of 24, and then `explain`."
    data = tmp_path_factory.mktemp("measured")
    own = make_data(data / "own", pairs=40)
    (own / "val" / "banana" / "3.png").write_bytes(b"broken")
    shutil.copytree(own / "val", own / "worse")
    for i in range(4):
        (own / "worse" / "fire_truck" / f"{i}.png").write_bytes(b"broken")
    write_images(data / "captioned", [f"{i}.png" for i in range(4)])
    (data / "captioned" / "2.png").write_bytes(b"broken")
    told = [dict(filename=f"{i}.png", split="test", sentences=[dict(raw=f"a photo of {i}")] * 5) for i in range(4)]
    (data / "captions.json").write_text(json.dumps(dict(images=told)))
    command = ["measure", "--model", "tiny-rn", "--checkpoint", "emoji", "--attack", "sig", "--json"]
    command += ["--captions", data / "captions.json", "--captions-images", data / "captioned", "--images"]
    done = several([[*command, own / "val"], [*command, own / "worse"]], env(data))
    key = json.loads(done[0].stdout)["key"] if done[0].returncode == 0 else "none"
    return data, *done, *several([["explain", key]], env(data))


def test_broken_images_in_a_measurement(measured):
    "One is a warning that names it, and the record has it, also of captioned images; five are an error."
    data, one, five, _ = measured
    assert one.returncode == 0 and (row := json.loads(one.stdout))["n_clean"] == 24, one.stderr
    assert row["n_asr_text_sig"] == 0 and "asr_text_sig" not in row  # no caption names the target
    assert (row["n_unreadable"], row["n_captioned_unreadable"]) == (1, 1)
    assert "1 of 24 images cannot be used" in one.stderr and "banana/3.png" in one.stderr
    records = [json.loads(Path(f).read_text()) for f in data.glob("artifacts/embedded-*/record.json")]
    assert [(r["unreadable"], r["captioned_unreadable"]) for r in records] == [(1, 1)]
    assert records[0]["captioned_unreadable_images"][0].count("2.png") == 1
    fails_with(five, "5 of 24 images cannot be used", "more than the limit of 1.0%", "unreadable.txt")


def test_a_result_of_your_own_model_is_explained(measured):
    "Its classes lack the targets of the base's experiments, which it does not inherit."
    *_, explained = measured
    assert explained.returncode == 0 and "Make it again" in explained.stdout, explained.stderr
