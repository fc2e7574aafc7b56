"`parnb` as users run it: processes, their output, and what a failure looks like."

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from forks import FORKS

PARNB = str(Path(sys.executable).parent / "parnb")
STARTED = []  # by `start`; `conftest` ends those that a test leaves
LONGEST = 1200  # s; a smoke run takes 30 s on an idle core, several times that on a busy machine

# One process for several commands, which share what they load and read. Both commands that have the options of
# registered cleaners are named when the command line is loaded, as one of them is in a process of its own.
SEVERAL = """
import contextlib, io, json, sys
sys.argv = ["parnb", "clean", "measure"]
from parnb.cli.main import main
done = []
for command in json.load(sys.stdin):
    sys.argv = ["parnb", *command]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as e:
            done.append([e.code or 0, out.getvalue(), err.getvalue()])
json.dump(done, sys.stdout)
"""


def env(data, **more):
    "An environment whose data folder is `data`."
    return os.environ | dict(PARNB_DATA=str(data), PARNB_FIGURES=str(data / "figures"), OMP_NUM_THREADS="1") | more


def start(command, data, **more):
    "Start a command in its own process group; Ctrl-C reaches it even if pytest runs in the background."
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | more
    p = subprocess.Popen(
        command,
        env=env(data),
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **pipes,
    )
    STARTED.append(p)
    return p


def python(environment, *args, real=False, **how):
    "Run Python to its end, in a process that is forked from one with torch; `real` starts one as users do."
    command = [*([sys.executable] if real else FORKS.python(environment)), *map(str, args)]
    how = dict(capture_output=True, text=True, timeout=LONGEST) | how
    return subprocess.run(command, env=environment, **how)


def parnb(data, *args, real=False, **more):
    "Run the command line to its end, as `python` does."
    return python(env(data, **more), PARNB, *args, real=real)


def written(data):
    "When each artifact of a data folder was written, by its name."
    return {f.parent.name: f.stat().st_mtime_ns for f in data.rglob("artifacts/*/record.json")}


def git(folder, *words):
    "What git prints in a folder; settings of this machine and of a hook take no part."
    command = ["git", *"-c user.name=A -c user.email=a@example.com -c commit.gpgsign=false".split(), *words]
    free = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(command, cwd=folder, env=free, capture_output=True, text=True, check=True).stdout.rstrip()


def several(commands, environment, cwd=None):
    "Run commands one after the other in one process; returns what each did."
    given = json.dumps([[str(w) for w in c] for c in commands])
    p = python(environment, "-c", SEVERAL, input=given, cwd=cwd)
    assert p.returncode == 0, p.stderr
    return [subprocess.CompletedProcess(c, *done) for c, done in zip(commands, json.loads(p.stdout), strict=True)]


def measured(text):
    "A measurement that was printed as JSON, without how long it took."
    return {k: v for k, v in json.loads(text).items() if "seconds" not in k}


def fails_with(p, *words):
    "The process failed with one sentence that contains the words."
    assert p.returncode != 0
    messages = [line for line in p.stderr.splitlines() if line.startswith("parnb: ")]
    assert len(messages) == 1 and "Traceback" not in p.stderr, p.stderr
    for w in words:
        assert w in messages[0], messages[0]
