"What a user meets when something goes wrong: real processes, real signals, a real full disk."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import LONGEST, PARNB, env, fails_with, measured, parnb, several, start
from waiting import wait_for

BIN = Path(sys.executable).parent
MEASURE = ["measure", "--smoke", "--attack", "badnet_stripes", "--json"]
STAGES = ["scenes", "poisoned", "cleaned", "embedded"]  # of a run, each named as the folders that it makes


def metrics(p):
    "The measurement that a finished process printed."
    assert p.returncode == 0, p.stderr
    return measured(p.stdout)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    "A data folder in which a smoke run finished, and its metrics."
    data = tmp_path_factory.mktemp("undisturbed")
    return data, metrics(parnb(data, *MEASURE))


@pytest.fixture
def scenes(undisturbed, tmp_path):
    "A data folder with the scenes, and nothing trained."
    shutil.copytree(undisturbed[0] / "cache", tmp_path / "cache")
    return tmp_path


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_a_stage_and_run_again(undisturbed, tmp_path, stage):
    "kill -9 in a stage leaves nothing half-written, and the same command then gives the same numbers."
    for made in (f for earlier in STAGES[: STAGES.index(stage)] for f in undisturbed[0].glob(f"*/{earlier}-*")):
        shutil.copytree(made, tmp_path / made.relative_to(undisturbed[0]))
    folder, name = tmp_path / ("cache" if stage == "scenes" else "artifacts"), f".tmp-{stage}"
    p = start([PARNB, *MEASURE], tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(folder.glob(f"{name}*")), f"{stage}* appears", p, every=0.002)
    time.sleep(0.3)  # so that the stage has written something; if it is over by then, the next one is hit
    os.killpg(p.pid, signal.SIGKILL)
    assert p.wait(LONGEST) == -signal.SIGKILL, "it had ended before"
    finished = [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
    assert all((f / "record.json").exists() or (f / "pairs.json").exists() for f in finished)
    assert metrics(parnb(tmp_path, *MEASURE)) == undisturbed[1]
    assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.rglob(".partial-*"))


def test_cached_is_not_computed_again(undisturbed):
    "A second call finds every artifact and gives the same numbers."
    data, expected = undisturbed
    before = {f: f.stat().st_mtime_ns for f in data.rglob("record.json")}
    assert metrics(parnb(data, *MEASURE)) == expected
    assert {f: f.stat().st_mtime_ns for f in data.rglob("record.json")} == before and len(before) == 4


def test_two_processes_one_works(scenes, undisturbed):
    "Two processes that ask for the same run share one computation."
    both = [start([PARNB, *MEASURE], scenes) for _ in range(2)]
    outputs = [p.communicate(timeout=LONGEST) for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    for out, _ in outputs:
        assert measured(out) == undisturbed[1]
    assert len(list((scenes / "artifacts").glob("poisoned-*"))) == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(scenes, how):
    "Ctrl-C, or the end of a cluster job, ends with one sentence and code 130, and leaves nothing half-written."
    p = start([PARNB, *MEASURE], scenes)
    wait_for(lambda: list((scenes / "artifacts").glob(".tmp-poisoned*")), "the training begins", p, every=0.01)
    p.send_signal(how)
    _, err = p.communicate(timeout=LONGEST)
    assert p.returncode == 130 and "run the same command again" in err and "Traceback" not in err
    assert not list(scenes.rglob(".tmp-*"))


@pytest.mark.parametrize("size", ["3m", "17m"])
def test_full_disk(undisturbed, tmp_path, size):
    "If the disk fills up while scenes are drawn (3 MB) or a model is saved (17 MB), the message names it."
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        if size == "17m":
            (tmp_path / "cache").symlink_to(undisturbed[0] / "cache")
            (tmp_path / "ballast").write_bytes(b"0" * 14_000_000)
        fails_with(parnb(tmp_path, *MEASURE, real=True), "is full", "PARNB_DATA")
        assert not list(tmp_path.glob("*/.tmp-*"))
    finally:
        subprocess.run(["umount", str(tmp_path)])


def test_damaged_scenes(scenes):
    "A flipped byte in the cache is found, and the message names the folder."
    f = next((scenes / "cache").glob("scenes-poison-*")) / "images.npy"
    raw = bytearray(f.read_bytes())
    raw[5000] ^= 1
    f.write_bytes(raw)
    fails_with(parnb(scenes, *MEASURE), "checksum", str(f.parent))


def test_truncated_weights(undisturbed, tmp_path):
    "A truncated model file is found before it is used, and the message says what to do."
    shutil.copytree(undisturbed[0], tmp_path / "d")
    for e in (tmp_path / "d" / "artifacts").glob("embedded-*"):
        shutil.rmtree(e)
    f = next((tmp_path / "d" / "artifacts").glob("cleaned-*")) / "model.safetensors"
    f.write_bytes(f.read_bytes()[:100_000])
    fails_with(parnb(tmp_path / "d", *MEASURE), "truncated or altered", "delete the folder")


MISTAKES = [
    (["measure", "--attack", "blended_txt"], ["did you mean 'blended_text'?"]),
    (["measure", "--tau", "4.5"], ["tau", "4.5", "less than or equal to 4"]),
    (["measure", "--tau", "0"], ["tau", "greater than 0"]),
    (["measure", "--lam", "1"], ["lam", "PAR"]),
    (["measure", "--rate", "0.00001"], ["poisons 0 of"]),
    (["measure", "--target", "bananna"], ["did you mean 'banana'?"]),
    (["measure", "--encoder", "resnet"], ["known: rn, vit"]),
    (["measure", "--scale", "tinny"], ["did you mean 'tiny'?"]),
    (["measure", "--key", "39ce6fa0", "--tau", "2"], ["--tau"]),
    (["clean", "--method", "cleanclp"], ["did you mean 'cleanclip'?"]),
    (["clean", "--image-column", "file"], ["--image-column", "--model"]),
    (["poison", "--attack", "none"], ["parnb methods"]),
    (["explain", "123456789abc"], ["123456789abc"]),
    (["results", "release", "123456789abc"], ["123456789abc"]),
    (["run", "03_par_claen"], ["did you mean '03_par_clean'?"]),
    (["run", "03_par_clean", "-p", "taw", "2"], ["did you mean 'tau'?"]),
    (["run", "03_par_clean", "-p", "tau", "9"], ["tau", "less than or equal to 4"]),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    "What each of the commands above did, by its words."
    data = tmp_path_factory.mktemp("mistakes")
    done = several([args for args, _ in MISTAKES], env(data))
    assert not list(data.glob("artifacts/*"))
    return {" ".join(p.args): p for p in done}


@pytest.mark.parametrize("args, words", MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_sentence(mistakes, args, words):
    fails_with(mistakes[" ".join(args)], *words)


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    "As users meet it, behind options of every command."
    p = parnb(tmp_path, "-q", "measure", "--quiet", "--tau", "4.5", real=True)
    fails_with(p, "less than or equal to 4")
    assert p.returncode == 1 and not p.stdout


def test_torchrun(scenes, undisturbed):
    "The processes of torchrun train together, and one of them measures and prints."
    command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", PARNB, *MEASURE]
    out, err = start(command, scenes).communicate(timeout=LONGEST)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [r["key"] for r in rows] == [undisturbed[1]["key"]], err
    assert not list(scenes.rglob(".tmp-*")) and not list(scenes.rglob(".partial-*"))


def test_torchrun_beside_another_program(scenes):
    "If another program trains the model, none of the processes of torchrun does: one that did would wait without end."
    alone = start([PARNB, *MEASURE], scenes)
    wait_for(lambda: list((scenes / "artifacts").glob(".tmp-poisoned*")), "the training begins", alone, every=0.01)
    os.killpg(alone.pid, signal.SIGSTOP)
    told = scenes / "told.txt"
    with open(told, "w") as err:
        command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", PARNB, *MEASURE]
        together = start(command, scenes, stderr=err)
        try:
            wait_for(lambda: "waiting for another process" in told.read_text(), "the first process waits", together)
            time.sleep(5)  # so that the second one is there, too
        finally:
            os.killpg(alone.pid, signal.SIGCONT)
        outputs = [p.communicate(timeout=LONGEST) for p in (alone, together)]
    assert [alone.returncode, together.returncode] == [0, 0], (outputs, told.read_text())
    assert measured(outputs[1][0]) == measured(outputs[0][0])
    assert not list(scenes.rglob(".first-*"))


def test_papermill_as_users_type_it(undisturbed):
    "papermill works without an output path if it is redirected; the notebook holds clean outputs."
    notebook = str(Path(__file__).parents[1] / "nbs" / "03_par_clean.ipynb")
    command = [str(BIN / "papermill"), notebook, "-p", "tau", "2.15", "-p", "smoke", "True"]
    command += ["-p", "attack", "badnet_stripes"]
    p = subprocess.run(command, env=env(undisturbed[0]), capture_output=True, text=True, timeout=LONGEST)
    assert p.returncode == 0, p.stderr[-2000:]
    nb = json.loads(p.stdout)
    outputs = [o for c in nb["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"] and "widgets" not in nb["metadata"]
    assert "Passed unknown parameter" not in p.stderr
    reports = [c for c in nb["cells"] if "report" in c["metadata"].get("tags", [])]
    assert f"{undisturbed[1]['clean_accuracy']:.4f}" in "".join(reports[0]["outputs"][0]["text"])


def test_synthetic_pairs(undisturbed):
    "Cleaning with synthetic pairs works like cleaning with scenes, and is another run."
    data, before = undisturbed
    after = metrics(parnb(data, *MEASURE, "--pairs", "synthetic", "--clean-count", "128"))
    assert after["pairs"] == "synthetic" and after["key"] != before["key"]
    generated = sorted((data / "cache").glob("synthetic-*/*/00000.tar"))  # some pairs of the first volume are dropped
    assert [f.parent.name for f in generated] == ["000", "001"]
