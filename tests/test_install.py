"""The wheel, installed into a fresh environment and used in an empty folder without a network.

Takes minutes and downloads packages, so it runs only with PARNB_INSTALL_TESTS=1, as .ci/run does.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    os.environ.get("PARNB_INSTALL_TESTS") != "1", reason="installs parnb: set PARNB_INSTALL_TESTS=1"
)
MAX_WHEEL_BYTES = 70_000_000
SMOKE = ["--smoke", "--attack", "badnet_stripes"]


def succeeded(done):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def quiet(done):
    "What a command prints on a pipe is its result; nothing warns."
    assert done.stderr == "", done.stderr
    return succeeded(done)


def test_the_wheel_holds_everything(distributions):
    wheel, sdist = distributions
    names = zipfile.ZipFile(wheel).namelist()
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(names)} files")
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    listed = subprocess.run(["git", "ls-files", "data", "nbs"], cwd=ROOT, capture_output=True, text=True).stdout
    kept = re.compile(r"data/(pretrained/(?!pretrained-)|results/)|nbs/(figures/|tables/|tutorials/)?[^/]+\.ipynb$")
    wanted = {f"parnb/shipped/{f}" for f in listed.splitlines() if kept.match(f)}
    assert len(wanted) > 60 and wanted == {n for n in names if n.startswith("parnb/shipped/")}
    name = "nbs/03_par_clean.ipynb"  # its source without its outputs
    texts = zipfile.ZipFile(wheel).read(f"parnb/shipped/{name}"), (ROOT / name).read_bytes()
    packed, here = (json.loads(text)["cells"] for text in texts)
    assert [c["source"] for c in packed] == [c["source"] for c in here]
    assert any(c.get("outputs") for c in here) and not any(c.get("outputs") for c in packed)
    presets = {p.relative_to(ROOT).as_posix() for p in (ROOT / "parnb" / "presets").rglob("*") if p.is_file()}
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "parnb").rglob("*.py")}
    assert presets | modules <= set(names)
    assert {n.split("/")[0] for n in names} == {"parnb", wheel.name.replace("-py3-none-any.whl", ".dist-info")}
    assert any(n.endswith("/settings.ini") for n in tarfile.open(sdist).getnames())


def test_the_environment_is_the_locked_one(installation):
    here = f"Python {sys.version_info.major}.{sys.version_info.minor} on {sys.platform}"
    if here not in (ROOT / "requirements.lock").read_text(encoding="utf-8"):
        pytest.skip(f"requirements.lock was not written for {here}")
    succeeded(installation.run("python", "-m", "pip", "check"))
    command = [installation.python, ROOT / ".ci" / "lock.py", "--check", "--installed"]
    done = subprocess.run(command, env=installation.env(), capture_output=True, text=True)
    differ = [line for line in done.stderr.splitlines() if not re.match(r"requirements.lock:|torch(vision)?==", line)]
    assert not differ, done.stderr


def test_doctor(installation):
    quiet(installation.run("parnb", "doctor"))


def test_the_main_job(installation):
    out = quiet(installation.run("parnb", "run", "03_par_clean", "-p", "smoke", "True"))
    executed = Path(re.search(r"^executed notebook: (.+)$", out, re.M)[1])
    assert executed.is_relative_to(installation.home), "without a checkout, data goes to the user's data folder"
    nb = json.loads(executed.read_text(encoding="utf-8"))
    warnings = [o["text"] for c in nb["cells"] for o in c.get("outputs", []) if o.get("name") == "stderr"]
    own = "WARNING: the attack Blended-Text did not succeed"  # in its smallest form it cannot
    assert not [text for text in warnings if not "".join(text).startswith(own)]


def test_measure_reads_a_released_row(installation):
    row = json.loads(quiet(installation.run("parnb", "measure", "--json")))
    assert 0.9 < row["clean_accuracy"] < 1 and row["attack_success_rate"] < 0.1


PAIRS = """
from pathlib import Path
from PIL import Image
from parnb.data.scenes import scenes
pairs, folder = scenes("clean", 128), Path("pairs")
folder.mkdir()
for i in range(len(pairs)):
    Image.fromarray(pairs.images[i]).save(folder / f"{i}.png")
    (folder / f"{i}.txt").write_text(pairs.captions[i])
"""


def test_clean_a_checkpoint(installation):
    "A model folder and a folder of images with captions."
    poisoned = succeeded(installation.run("parnb", "poison", *SMOKE)).splitlines()[-1]
    succeeded(installation.run("python", "-c", PAIRS))
    command = ["parnb", "-q", "clean", "--model", poisoned, "--pairs", "pairs", "--out", "cleaned"]
    done = installation.run(*command, "--epochs", "1", "--batch-size", "64")
    assert succeeded(done).strip() == "cleaned"
    account = [line.split(":")[0] for line in done.stderr.splitlines()]  # what the cleaning did, and nothing else
    assert account[0] == "cleaning" and set(account[1:]) <= {"WARNING"}, done.stderr
    assert (installation.work / "cleaned" / "model.safetensors").exists()


def test_reproduce_knows_its_runs(installation):
    out = quiet(installation.run("parnb", "reproduce", "--dry-run"))
    runs, figures = map(int, re.search(r"(\d+)[^\d]* runs? for (\d+) figures?", out).groups())
    assert runs > 100 and figures >= 9


def test_notebooks_are_copied(installation):
    quiet(installation.run("parnb", "notebooks", "mine"))
    copied = {
        p.relative_to(installation.work / "mine").as_posix() for p in (installation.work / "mine").rglob("*.ipynb")
    }
    assert {"03_par_clean.ipynb", "explorer.ipynb", "figures/fig1_outcomes.ipynb"} <= copied
    succeeded(installation.run("jupyter", "lab", "--version"))


def test_nothing_else_is_written(installation):
    left = {p.name for p in installation.work.iterdir()}
    assert left <= {"cleaned", "mine", "pairs"}, left
