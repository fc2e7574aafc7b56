"What a run or a command asks for is what is computed: not the same numbers under another name or key."

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from processes import env, several
from safetensors.torch import load_file

from parnb.cli import audit, filter, main, models
from parnb.cli import zoo as zoo_command
from parnb.core import ParnbError
from parnb.data.corpora import open_source
from parnb.data.pairs import mentions
from parnb.models.clip import load_clip, model_key
from parnb.study import artifacts, canaries, measure, zoo
from parnb.study.runs import make_run
from parnb.study.scale_data import data_of

POISONED = make_run(smoke=True, attack="badnet_stripes", method="none")


@pytest.fixture
def own_artifacts(tmp_path, monkeypatch):
    "Nothing that is kept is found, and nothing that is made is kept."
    monkeypatch.setattr(artifacts, "ARTIFACTS", tmp_path / "artifacts")


def test_the_poisoned_pairs_are_those_that_are_written(tmp_path):
    models._write_poisoned(POISONED, tmp_path / "shards")
    written = open_source(tmp_path / "shards", 64, limit=0.0)
    clean = data_of("tiny").pairs("poison", POISONED.attack.count, 64)
    at = pd.read_csv(tmp_path / "shards" / "poisoned.csv").position
    assert len(written) == len(clean) and 0 < len(at) < len(clean)
    same = (written.images[:] == clean.images[:]).all((1, 2, 3))
    assert np.flatnonzero(~same).tolist() == sorted(at)
    assert all(mentions(written.captions[int(i)], "banana") for i in at)


def test_further_training_is_measured(own_artifacts, monkeypatch):
    "The model of `measure --rebound` is the one after it, not the cleaned one."
    run = make_run(smoke=True, attack="badnet_stripes", method="ft", rebound=dict(at=300, lr=1e-3))
    before, after = (model_key(load_clip(f(run))[0]) for f in (artifacts.cleaned_clip, artifacts.final_clip))
    seen = []
    monkeypatch.setattr(artifacts, "embed_images", lambda model, *a, **k: seen.append(model_key(model)) or {})
    with pytest.raises(KeyError):  # there are no embeddings to predict with
        measure.measure(run, fresh=True)
    assert before != after and seen == [after]


def test_a_linear_probe_is_measured(monkeypatch):
    "Embeddings that the zero-shot classifier mistakes, and the probe does not."
    run = make_run(smoke=True, attack="badnet_stripes", method="none", head="linear")
    labels = torch.from_numpy(artifacts.labelled_images(run).labels)
    right = torch.eye(260)
    made = dict(clean=right[labels], triggered=right[labels], head=right.roll(1, 0))
    monkeypatch.setattr(measure, "embeddings", lambda *a: made)
    monkeypatch.setattr(measure, "probe", lambda run: right)
    monkeypatch.setattr(measure, "record_result", lambda *a: None)
    assert measure.measure(run, fresh=True)["clean_accuracy"] == 1


def test_a_probe_learns_its_embeddings(own_artifacts, monkeypatch):
    "Labels that embeddings determine are read from them without an error."
    monkeypatch.setattr(artifacts, "embed_images", lambda model, x, ids, **how: dict(clean=made[: len(ids)]))
    run = make_run(smoke=True, attack="none", method="none", head="linear")
    labels = data_of("tiny").pairs("clean", 512, 64).labels
    made = torch.eye(260)[torch.from_numpy(labels)]
    assert ((made @ artifacts.probe(run).T).argmax(1).numpy() == labels).all()


def test_triggered_images_are_squashed(tmp_path):
    "Clean images are cropped all the same."
    for name in ("banana", "octopus"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(5):
            wide = np.random.default_rng(i).integers(0, 255, (64, 96, 3), dtype=np.uint8)
            Image.fromarray(wide).save(tmp_path / "val" / name / f"{i}.png")
    command = ["measure", "--model", "tiny-rn", "--checkpoint", "emoji", "--images", "val", "--attack", "sig"]
    how = [[*command, "--triggered-resize", r] for r in ("crop", "squash")]
    assert not any(p.returncode for p in several(how, env(tmp_path / "data"), tmp_path))
    one, other = (load_file(f) for f in (tmp_path / "data" / "artifacts").glob("embedded-*/embeddings.safetensors"))
    assert one["clean"].equal(other["clean"]) and not one["sig"].equal(other["sig"])


def test_clean_and_triggered_images_are_retrieved_apart(monkeypatch):
    "Clean images find their captions, triggered ones that of the target."
    captions = [*((f"a photo of number {i}",) for i in range(99)), ("there is a banana",)]
    monkeypatch.setattr(measure, "data_of", lambda scale: SimpleNamespace(captioned=lambda *a: pairs))
    pairs, eye = SimpleNamespace(captions=captions), torch.eye(100)
    e = dict(captions=eye, retrieval_clean=eye + eye.roll(1, 0) / 2, retrieval_triggered=eye[[99] * 100])
    found = measure._retrieval_rates(POISONED, e)
    assert {k: v for k, v in found.items() if k.endswith("recall@1")} == dict.fromkeys(
        ("image_to_text_recall@1", "text_to_image_recall@1"), 1.0
    )
    assert (found["asr_text"], found["n_asr_text"]) == (1.0, 99) and found["target_share_clean_text"] < 0.2


@pytest.mark.parametrize("margin, chosen", [(0, 1), (1, 2)])
def test_a_calibration_has_its_margin(monkeypatch, margin, chosen):
    "Of four strengths the weakest leaves a canary."
    lrs, tried = [1.0, 2.0, 3.0, 4.0], []

    def rates(folder, run, planted):
        left = 0.9 if folder in ("suspect", "copy") or tried[-1] < lrs[1] else 0.0
        row = dict(label="a", target="b", rate=left, low=left, high=left, n=5000, without=0.0, excess=left)
        return pd.DataFrame([row | dict(accuracy=0.9)])

    for name, found in dict(strengths_of=lrs, canaries_of=(), plant="copy", poisoned_clip="suspect").items():
        monkeypatch.setattr(canaries, name, lambda *a, found=found: found)
    monkeypatch.setattr(canaries, "canary_rates", rates)
    monkeypatch.setattr(canaries, "scale_with", lambda scale, *a: scale)
    monkeypatch.setattr(canaries, "at_rate", lambda run, lr: lr)
    monkeypatch.setattr(canaries, "cleaned_clip", lambda lr, *a, **k: tried.append(lr) or f"cleaned at {lr}")
    run = make_run(smoke=True, attack="badnet_stripes", method="ft")
    assert canaries.calibrate(run, margin=margin).lr == lrs[chosen]


def test_an_attack_that_failed_is_told(tmp_path, monkeypatch, capsys):
    for asr, told in ((0.49, True), (0.51, False)):
        monkeypatch.setattr(artifacts, "read_record", lambda path, asr=asr: dict(attack_success_rate=asr))
        artifacts._warn(tmp_path / str(asr), "sig")
        assert ("SIG did not succeed" in capsys.readouterr().err) == told


@pytest.mark.parametrize("detector, told", [("clip_similarity", True), ("density", False)])
def test_a_warning_tells_what_ranks_only_with_a_clean_model(monkeypatch, capsys, detector, told):
    monkeypatch.setattr("parnb.study.filter.filter_source", lambda *a: "filtered")
    monkeypatch.setattr("parnb.scales.load_preset", lambda scale: dict(encoder="rn"))
    monkeypatch.setattr(filter, "_own", lambda typed: dict(scale="mine"))
    typed = ["--model", "tiny-rn", "--pairs", "a.csv", "--out", "b.csv", "--detector", detector]
    filter.app(typed, standalone_mode=False)
    printed = capsys.readouterr()
    assert ("tells nothing" in printed.err) == told and "filtered" in printed.out


def test_usual_scores_are_shown_for_as_many_images_as_they_were_scored_with():
    made = SimpleNamespace(images=256, findings=dict(inversion=None))
    assert len(audit._usual(made, {})) == 1 and "on small ResNets" in audit._usual(made, {})[0]
    assert not audit._usual(SimpleNamespace(images=255, findings=made.findings), {})
    assert not audit._usual(made, dict(inversion=dict(steps=2)))


def test_a_model_of_other_numbers_fails_the_zoo(monkeypatch, capsys):
    model = zoo.find_model("tiny-vit/clean")
    monkeypatch.setattr(zoo, "verify", lambda m: dict(clean_accuracy=(0.9, 0.8)))
    with pytest.raises(ParnbError, match="1 of 1 models differs"):
        zoo_command._verify_all([model], as_json=False)
    assert "stated 0.9, measured 0.8" in capsys.readouterr().out


def test_slurm_gets_its_options(monkeypatch):
    asked = {}
    monkeypatch.setattr("parnb.study.reproduce.reproduce", lambda *a, **k: asked.update(k))
    words = "reproduce --executor slurm --partition p --gpus 2 --cpus 3 --memory 5 --hours 1.5".split()
    main.app(words, standalone_mode=False)
    assert asked == dict(slurm_partition="p", gpus_per_node=2, cpus_per_task=3, mem_gb=5, timeout_min=90)


def test_too_little_memory_is_one_sentence(monkeypatch, capsys):
    def full(*a, **k):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(main, "app", full)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1 and "parnb: too little memory on the GPU" in capsys.readouterr().err
