"The rules of the claims are frozen: a rule that changes needs a new date, and the protocol that it is judged under."

import json
import sys
from datetime import date
from pathlib import Path

import pytest
from scripts import load_script

from parnb.core import PRESETS
from parnb.scales import load_preset
from parnb.study.claims import PLAN, frozen_keys
from parnb.study.protocol import later_hashes, protocol_hash

COMMAND = Path(__file__).resolve().parents[1] / ".ci" / "claims.py"


@pytest.fixture
def freeze(tmp_path, monkeypatch):
    "The command on a copy of the claims, whose text it returns; the protocol's hash is one that was made up."
    command = load_script(COMMAND)
    path = tmp_path / "claims.json"
    path.write_text((PRESETS / "claims.json").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(command, "PATH", path)
    monkeypatch.setattr(command, "protocol_hash", lambda: load_preset("claims")["claims"][0]["frozen"]["protocol"])

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["claims.py", *options])
        command.main()
        return path.read_text(encoding="utf-8")

    run.path, run.command = path, command
    return run


def test_every_rule_is_as_it_was_frozen():
    hashes, claims = (protocol_hash(), later_hashes()), load_preset("claims")["claims"]
    assert len({c["name"] for c in claims}) == len(claims)
    changed = [c["name"] for c in claims if c["frozen"] != dict(date=c["frozen"]["date"]) | frozen_keys(c, *hashes)]
    assert not changed, f"freeze again with `python .ci/claims.py`: {changed}"
    assert all(date.fromisoformat(c["frozen"]["date"]) for c in claims)


def test_rules_under_the_protocol_cite_it():
    claims = load_preset("claims")["claims"]
    under = [PLAN in c.get("plans", ()) for c in claims]
    assert {*under} == {True, False} and under == [c["frozen"]["protocol"] is not None for c in claims]


@pytest.mark.parametrize(
    "old, new, claim",
    [
        ('"than": "cleanclip", "budget": 3', '"than": "cleanclip", "budget": 5', "protocol_par_cleanclip"),
        ('"most": 0.1}', '"most": 0.2}', "synthetic_pairs"),
    ],
)
def test_a_rule_that_changed_fails_until_it_is_frozen_again(freeze, old, new, claim):
    text = freeze.path.read_text(encoding="utf-8")
    assert freeze("--check") == text and old in text
    changed = text.replace(old, new, 1)
    freeze.path.write_text(changed, encoding="utf-8")
    with pytest.raises(SystemExit, match=f"not as it was frozen: {claim}:"):
        freeze("--check")
    after = freeze()
    lines = [(a, b) for a, b in zip(changed.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(lines) == 1 and '"frozen"' in lines[0][1] and date.today().isoformat() in lines[0][1]
    assert freeze("--check") == after


def test_a_new_claim_is_frozen(freeze):
    text = freeze.path.read_text(encoding="utf-8")
    kept = [line for line in text.splitlines() if '"frozen"' not in line]
    freeze.path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    assert all(c["frozen"]["rule"] for c in json.loads(freeze())["claims"])


def test_a_new_protocol_freezes_its_rules_again(freeze, monkeypatch):
    before = json.loads(freeze.path.read_text(encoding="utf-8"))["claims"]
    monkeypatch.setattr(freeze.command, "protocol_hash", lambda: "0" * 12)
    after = json.loads(freeze())["claims"]
    changed = {a["name"] for a, b in zip(after, before) if a["frozen"] != b["frozen"]}
    assert changed == {c["name"] for c in before if PLAN in c.get("plans", ())}
