"Progress and messages of long commands: where they are shown, and where not."

import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading

import pytest
from processes import PARNB

LONGEST = 600  # s; each command takes a few seconds on an idle machine
COUNT = """\
from parnb.progress import progress
import time
with progress('counting', 30, 'steps') as p:
    for _ in range(30): time.sleep(0.02); p.step()"""


def notebook(folder, *cells):
    "A notebook of code cells, the last one its report; returns the command that executes it."
    made = []
    for i, source in enumerate(("n: int = 1", *cells)):
        tags = ["report"] if i == len(cells) else ["parameters"] if i == 0 else []
        cell = dict(cell_type="code", execution_count=None, id=f"c{i}", metadata=dict(tags=tags))
        made.append(cell | dict(outputs=[], source=source))
    kernel = dict(name="python3", display_name="python3", language="python")
    nb = dict(cells=made, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    (folder / "long.ipynb").write_text(json.dumps(nb))
    return ["run", str(folder / "long.ipynb"), "--out", str(folder / "out.ipynb")]


def outputs(folder):
    return [o for c in json.loads((folder / "out.ipynb").read_text())["cells"] for o in c.get("outputs", [])]


def in_terminal(command):
    "Run with a terminal as standard error; returns what was sent to it, and standard output."
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    sent = []

    def listen():
        try:
            while piece := os.read(ours, 65536):
                sent.append(piece)
        except OSError:
            pass  # the terminal is closed

    t = threading.Thread(target=listen)
    t.start()
    out, _ = p.communicate(timeout=LONGEST)
    t.join(LONGEST)
    os.close(ours)
    assert p.returncode == 0, b"".join(sent)
    return b"".join(sent).decode(), out


def piped(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)


def is_bar(sent):
    "One line, rewritten, with a percentage and the remaining time; it is erased at the end."
    assert re.search(r"counting: +\d+%.*<\d\d:\d\d", sent) and "\n" not in sent, sent
    assert re.search(r"\r +\r$", sent), sent[-200:]


def test_a_terminal_shows_a_bar():
    is_bar(in_terminal([sys.executable, "-c", COUNT])[0])


def test_a_pipe_shows_a_line_a_minute():
    "Here: a line in a fifth of a second."
    p = piped([sys.executable, "-c", f"import parnb.progress\nparnb.progress._EVERY = 0.2\n{COUNT}"])
    lines = p.stderr.splitlines()
    assert p.returncode == 0 and not p.stdout and len(lines) >= 2
    assert all(re.fullmatch(r"counting: \d+/30 steps, .* s \(.* steps/s(, .* left)?\)", line) for line in lines), lines


def test_a_pipe_shows_nothing_of_short_work():
    p = piped([sys.executable, "-c", COUNT])
    assert (p.returncode, p.stdout, p.stderr) == (0, "", "")


def test_a_notebook_run_from_a_terminal(tmp_path):
    "Its bars are shown live; saved is one line of plain text, and no widget."
    sent, out = in_terminal([PARNB, *notebook(tmp_path, COUNT, "print('the'+' result')")])
    is_bar(sent)
    assert out == f"the result\nexecuted notebook: {tmp_path / 'out.ipynb'}\n"
    line, report = outputs(tmp_path)
    assert list(line["data"]) == ["text/plain"]
    pattern = r"counting: 30/30 steps, [\d.]+ s \([\d.]+ steps/s\)"
    assert re.fullmatch(pattern, "".join(line["data"]["text/plain"]))
    assert "".join(report["text"]) == "the result\n"
    assert "widgets" not in json.loads((tmp_path / "out.ipynb").read_text())["metadata"]


@pytest.mark.parametrize("where", ["before", "after"])
def test_quiet(tmp_path, where):
    "Nothing in a terminal, nor in the saved notebook, wherever the option stands."
    command = notebook(tmp_path, COUNT, "print('result')")
    sent, _ = in_terminal([PARNB, *(["-q", *command] if where == "before" else [*command, "--quiet"])])
    assert sent == "" and len(outputs(tmp_path)) == 1


def test_piped_notebook(tmp_path):
    "Results on standard output; nothing on standard error, not even when the kernel is closed at once."
    p = piped([PARNB, *notebook(tmp_path, COUNT, "print('result')")])
    assert (p.returncode, p.stderr, p.stdout.splitlines()[0]) == (0, "", "result")


def test_a_piped_notebook_shows_a_line_a_minute(tmp_path):
    "Here: a line in a fifth of a second."
    often = "import parnb.progress\nparnb.progress._EVERY = 0.2"
    p = piped([PARNB, *notebook(tmp_path, often, COUNT, "print('result')")])
    lines = p.stderr.splitlines()
    assert p.returncode == 0 and p.stdout.startswith("result") and len(lines) >= 2
    assert all(line.startswith("counting: ") for line in lines), lines


def test_verbose(tmp_path):
    "A failure is one sentence; with --verbose a traceback precedes it, and the notebook's output is logged."
    command = notebook(tmp_path, "print('on the way')\n1/0")
    short, long = piped([PARNB, *command]), piped([PARNB, *command, "--verbose"])
    message = "parnb: cell 2 of long.ipynb failed with ZeroDivisionError: division by zero"
    for p in (short, long):
        assert p.returncode == 1 and p.stderr.splitlines()[-1].startswith(message), p.stderr
    assert len(short.stderr.splitlines()) == 1
    assert "Traceback (most recent call last)" in long.stderr and "on the way" in long.stderr


def test_an_unexpected_error_is_a_sentence_too(tmp_path):
    "An error that nobody foresaw names itself, and says how to see where it comes from."
    code = (
        "import sys, parnb.cli.main as c, parnb.study.notebooks as n\n"
        "n.find_notebook = lambda name: {}[name]\n"
        "sys.argv = ['parnb', 'run', 'x', *sys.argv[1:]]\n"
        "c.main()"
    )
    short, long = piped([sys.executable, "-c", code]), piped([sys.executable, "-c", code, "--verbose"])
    assert short.returncode == 1 and short.stderr.count("\n") == 1, short.stderr
    assert short.stderr.startswith("parnb: KeyError: 'x'") and "--verbose" in short.stderr
    assert long.returncode == 1 and "Traceback" in long.stderr
    assert long.stderr.splitlines()[-1].startswith("parnb: KeyError: 'x'")
