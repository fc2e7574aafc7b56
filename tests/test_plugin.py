"""A package that is not part of parnb brings a cleaner and an attack, and they work everywhere.

The package lies in tests/plugin: a cleaner that does not train, and an attack with its own loss. Nothing of parnb is
edited. The package is put on the path of this environment; with PARNB_INSTALL_TESTS=1 it is also installed by pip
beside parnb's wheel in a fresh environment, and what is drawn is then drawn there only."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest

PLUGIN = Path(__file__).parent / "plugin"
INSTALL = os.environ.get("PARNB_INSTALL_TESTS") == "1"
LONGEST = 1200  # s; the slowest command takes a minute on an idle machine
ATTACK, CLEANER = "corner_square", "shrink"
LABELS = "Corner-Square", "Shrink"
RUN = ["--scale", "plugin.json", "--attack", ATTACK]
# A scale small enough for a test; its experiments name the methods of the package
PRESET = dict(
    base="tiny",
    pairs=dict(poison=512, clean=512),
    images=260,
    experiments=dict(
        tab01_main=[dict(attack="none", method="none"), dict(attack=ATTACK, method=["none", CLEANER])],
        fig1_outcomes="tab01_main",
        tab06_ablation=[
            dict(label="before cleaning", attack=ATTACK, method="none"),
            dict(label="Shrink", attack=ATTACK, method=CLEANER),
            dict(label="Shrink, half as many", attack=ATTACK, method=CLEANER, share=0.025),
        ],
    ),
)


def with_site(folder):
    "The environment in which Python also finds the modules of a folder."
    return dict(PYTHONPATH=os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))


def put_on_path(folder):
    "What pip would install, without pip: the module and its metadata."
    about = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    shutil.copy(PLUGIN / "parnb_corner.py", folder)
    info = folder / "parnb_corner-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    groups = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for g, e in about["entry-points"].items()]
    (info / "entry_points.txt").write_text("\n".join(groups))


@pytest.fixture(scope="module", params=["on the path", "installed"])
def run(tmp_path_factory, request):
    "Runs a command of an environment that has the package, in a folder with the preset; returns its output."
    installed = request.param == "installed"
    if installed and not INSTALL:
        pytest.skip("installs parnb: set PARNB_INSTALL_TESTS=1")
    work = tmp_path_factory.mktemp("plugin")
    (work / "plugin.json").write_text(json.dumps(PRESET))
    there = dict(PARNB_DATA=str(work / "data"), PARNB_FIGURES=str(work / "figures"), OMP_NUM_THREADS="1")
    if installed:
        made = request.getfixturevalue("installation")
        shutil.copytree(PLUGIN, work / "package")  # pip builds in the folder that it installs
        made.pip_install("--no-deps", work / "package")
        env, folder = made.env() | there, made.bin
    else:
        (work / "site").mkdir()
        put_on_path(work / "site")
        env, folder = os.environ | there | with_site(work / "site"), Path(sys.executable).parent

    def run(*command):
        command = [str(folder / command[0]), *command[1:]]
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=LONGEST)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder, run.installed = work, installed
    return run


@pytest.fixture(scope="module")
def run_once(run):
    "`run` of one environment: of the wheel where it is installed."
    if INSTALL and not run.installed:
        pytest.skip("the installed package is tested instead")
    return run


@pytest.fixture(scope="module")
def measured(run):
    "The row of the package's cleaner against its attack, after poisoning, cleaning and measuring by commands."
    poisoned = Path(run("parnb", "poison", *RUN).splitlines()[-1])
    assert "distance" in pd.read_csv(poisoned / "log.csv"), "the attack trains with its own loss"
    cleaned = Path(run("parnb", "clean", *RUN, "--method", CLEANER).splitlines()[-1])
    assert "zeros" in pd.read_csv(cleaned / "log.csv"), "the cleaner does its own work"
    return json.loads(run("parnb", "measure", *RUN, "--method", CLEANER, "--json"))


@pytest.fixture(scope="module")
def figures(run_once, measured):
    "The folder of tables 1 and 6 and figures 1 and 2, after `parnb reproduce`."
    names = ["tab01_main", "tab06_ablation", "fig1_outcomes", "fig2_triggers"]
    only = [part for n in names for part in ("--only", n)]
    run_once("parnb", "reproduce", "--scale", "plugin.json", *only, "--jobs", "2")
    return run_once.folder / "figures" / "plugin"


def test_measure(measured):
    assert (measured["attack"], measured["method"], measured["share"]) == (ATTACK, CLEANER, 0.05)
    assert 0 < measured["clean_accuracy"] <= 1 and 0 <= measured["attack_success_rate"] <= 1


def test_explain(run, measured):
    text = run("parnb", "explain", measured["key"])
    assert all(label in text for label in LABELS)


def test_table_1(figures, measured):
    table = pd.read_csv(figures / "tab01_main.csv")
    row = table[(table.attack == LABELS[0]) & (table.measure == "CA")].iloc[0]
    assert row[LABELS[1]] == pytest.approx(measured["clean_accuracy"], abs=1e-4)


def test_table_6(figures):
    assert set(pd.read_csv(figures / "tab06_ablation.csv").iloc[:, 0]) >= {"Shrink", "Shrink, half as many"}


def test_figures_1_and_2(figures):
    for name, labels in (("fig1_outcomes", LABELS), ("fig2_triggers", LABELS[:1])):
        words = re.findall(r">([^<>]+)</text>", (figures / f"{name}.svg").read_text())
        text = "".join(words)  # a label may be on two lines
        assert all(label in text for label in labels), f"{name} shows only {words}"


def test_explorer(run_once):
    "The menus offer the methods, and the sliders their parameters."
    code = (
        "from parnb.show.explorer import Explorer\n"
        f"e = Explorer('plugin.json', attack={ATTACK!r}, method={CLEANER!r}, smoke=True)\n"
        "print(dict(e.attack.options), dict(e.method.options), sorted(e.sliders), e.strength.description)\n"
        f"print([w.description for w in e.sliders[{CLEANER!r}].values()])"
    )
    out = run_once("python", "-c", code)
    assert f"'{LABELS[0]}': '{ATTACK}'" in out and f"'{LABELS[1]}': '{CLEANER}'" in out
    assert "size" in out.splitlines()[0] and "share" in out.splitlines()[1]


def test_help_names_them(run):
    listed = run("parnb", "methods")
    told = re.sub(r"\x1b\[[\d;]*m", "", run("parnb", "clean", "--help"))  # coloured where PY_COLORS is set
    assert ATTACK in listed and CLEANER in listed and "--share" in told


def test_a_package_that_ends_the_process_is_left_out(tmp_path):
    "With one warning, as one that fails to load; the command goes on."
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(0)\n")
    (info := tmp_path / "ends-0.1.dist-info").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ends\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[parnb.cleaners]\nends = ends:Cleaner\n")
    command, env = [str(Path(sys.executable).parent / "parnb"), "methods"], os.environ | with_site(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LONGEST)
    assert done.returncode == 0 and "par_aligned" in done.stdout
    assert done.stderr.count("did not load: SystemExit: 0") == 1, done.stderr
