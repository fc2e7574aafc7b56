"The population of models with which detectors are evaluated: one member from its training to its row."

import numpy as np
import pandas as pd
import pytest

from parnb.core import ParnbError
from parnb.detectors.base import Finding
from parnb.evaluation.statistics import auroc_with_interval
from parnb.show.detection import tab_detectors
from parnb.study import population as module
from parnb.study.detection import measures, scores_of
from parnb.study.population import audit_member, compute_next, load_population, population, population_rows, recorded


@pytest.fixture
def places(tmp_path, monkeypatch):
    "Empty places for released rows and rows of this machine."
    places = {o: tmp_path / o for o in ("released", "local")}
    monkeypatch.setattr(module, "PLACES", places)
    here = [folder.joinpath for folder in places.values()]
    monkeypatch.setattr(module, "recorded_file", lambda *n: next((f for at in here if (f := at(*n)).exists()), None))
    monkeypatch.setattr(module, "RELEASED", places["released"])
    monkeypatch.setattr(module, "LOCAL", places["local"])
    return places


def test_a_member_from_its_training_to_its_row(places, tmp_path, monkeypatch):
    monkeypatch.setattr("parnb.study.artifacts.ARTIFACTS", tmp_path / "artifacts")
    poisoned, control = population("rn")[:2].to_dict("records")
    rows = pd.concat([audit_member(m, smoke=True) for m in (poisoned, control)])
    assert rows.detector.nunique() == len(rows) / 2 == len(load_population()["audit"]["detectors"])
    assert np.isfinite(rows.score).all() and rows.attack_success_rate.between(0, 1).all()
    assert rows.model.nunique() == 2 and rows.weights.nunique() == 1
    assert not len(recorded()), "the smallest form is not recorded"


def invented(places, members):
    "Rows as `audit_member` records them, for some members."
    wanted, rng = population_rows(), np.random.default_rng(0)
    rows = wanted[wanted.member.isin(members)].reset_index(drop=True)
    keep = ["key", *(c for c in module.population()), "detector"]
    rows = rows[keep].assign(weights="0" * 64, score=rng.normal(size=len(rows)), suspects=16)
    rows["rank"] = np.where(rows.index % 3 == 0, np.nan, rows.index % 7 + 1)
    rows["attack_success_rate"] = np.where(rows.role == "control", 0.0, 0.95)
    rows["clean_accuracy"] = 0.97
    for part in (rows.iloc[::2], rows.iloc[1::2]):  # a file is extended
        module._add(places["local"], part)
    return rows


def test_rows_are_recorded_released_and_judged(places):
    members = population("rn")
    some = members.member[members.part == "development"]
    made = invented(places, some)
    rows = population_rows()
    assert rows.done.sum() == len(made) and set(rows.origin.dropna()) == {"local"}
    assert module.release_population() == len(made) and not (places["local"] / "population.csv").exists()
    rows = population_rows()
    assert set(rows.origin.dropna()) == {"released"} and len(recorded()) == len(made)
    one = rows[rows.detector == rows.detector[0]]
    s = scores_of(one, one.stage == "rn")
    assert (s.backdoored.sum(), s.clean.sum(), s.sets.sum(), s.tests.sum()) == (22, 22, 11, 11)
    found = measures(s)
    mine = made[made.detector == rows.detector[0]]
    clean, backdoored = (mine.score[mine.role == r] for r in ("control", "poisoned"))
    pairs = np.mean([(b > c) + (b == c) / 2 for b in backdoored for c in clean])
    assert auroc_with_interval(*found["AUROC"])["value"] == pytest.approx(pairs, abs=1e-9)
    highest = mine.score[(mine.role == "control") & (mine.seed % 2 == 0)].max()
    assert found["TPR@0%"].sum() == sum(b > highest + 1e-9 for b in backdoored)
    assert found["recall@5"].sum() == (mine["rank"][mine.role == "poisoned"] <= 5).sum()
    frame = tab_detectors(rows)
    assert frame.computed[0] == f"44/{len(members)}" and (frame.AUROC[frame.models == "ViT"] == "").all()


def test_what_a_score_was_computed_from_is_released_with_it(places):
    made = invented(places, population("rn").member[:2])
    shown = np.random.default_rng(0).integers(0, 256, (8, 32, 3), np.uint8)
    for row in made.itertuples():
        table = pd.DataFrame(dict(target=[row.target, "any"], score=[2.5, 1.0]))
        module._keep(row.key, Finding(2.5, "says", table, {"a square": shown}), row.role == "poisoned")
    here = [(module.suspects_of(r.key), module.picture_of(r.key)) for r in made.itertuples()]
    module.release_population()
    assert not [*(places["local"] / "suspects").iterdir()]
    for row, (table, picture) in zip(made.itertuples(), here):
        assert module.suspects_of(row.key).equals(table) and list(table.target) == [row.target, "any"]
        assert (picture is None) == (row.role == "control") == (module.picture_of(row.key) is None)
        assert picture is None or (picture[0] == "a square" and (module.picture_of(row.key)[1] == shown).all())
    assert not len(module.suspects_of("unknown")) and module.picture_of("unknown") is None


def test_other_weights_of_a_pretraining_are_refused(places):
    member = population("rn").iloc[0].to_dict()
    invented(places, [member["member"]])
    with pytest.raises(ParnbError, match="results exist for 000000000000"):
        module._same_weights(member, "1" * 64)
    module._same_weights(member, "0" * 64)
    module._same_weights(member | dict(pretraining=1), "1" * 64)


def test_a_damaged_row_is_named(places):
    made = invented(places, population("rn").member[:2])
    path = places["local"] / "population.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    with pytest.raises(ParnbError, match=f"row {len(made) + 2} of .*population.csv is damaged"):
        population_rows()


def test_nothing_is_computed_before_the_freeze_nor_held_out_by_accident(monkeypatch, places):
    p = load_population()
    monkeypatch.setattr(module, "load_population", lambda: p | dict(frozen=None))
    with pytest.raises(ParnbError, match="not frozen yet"):
        compute_next(minutes=1)
    monkeypatch.setattr(module, "load_population", lambda: p | dict(frozen=dict(date="2026-11-26", hash="0" * 12)))
    with pytest.raises(ParnbError, match="has changed since it was frozen"):
        compute_next(minutes=1)
    held = population()[lambda m: m.part == "held_out"].iloc[0].to_dict()
    with pytest.raises(ParnbError, match="is held out"):
        audit_member(held, smoke=True)


def test_workers_share_pairs_and_leave_out_what_is_held_out(monkeypatch, places):
    done = []
    monkeypatch.setattr(module, "check_population", lambda: None)

    def pretend(member, held_out):
        done.append(member["member"])
        return pd.DataFrame([dict(detector="any", score=0.0, attack_success_rate=0.0)])

    monkeypatch.setattr(module, "audit_member", pretend)
    members = population()
    for held_out, wanted in ((False, members[members.part == "development"]), (True, members)):
        done.clear()
        parts = [compute_next(60, held_out, worker=k, workers=2, tell=lambda line: None) for k in range(2)]
        assert sorted(done) == sorted(wanted.member) and not {*parts[0]} & {*parts[1]}
        pairs = [{m.rsplit("-", 1)[0] for m in part if not m.startswith("cleaned")} for part in parts]
        assert not pairs[0] & pairs[1], "a poisoned model and its control are computed by one worker"
    assert compute_next(0, tell=lambda line: None) == []
