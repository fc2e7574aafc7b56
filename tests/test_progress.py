"What is said while something takes long, where it is said, and where not."
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from functools import wraps
from pathlib import Path

import pytest

PARNB = str(Path(sys.executable).parent/'parnb')
COUNT = "from parnb.core import progress\nimport time\nwith progress('counting', 30, 'steps') as p:\n    for _ in range(30): time.sleep(0.05); p.step()"


def notebook(folder, *cells):
    "A notebook of code cells, the last one its report."
    made = [dict(cell_type='code', execution_count=None, id=f'c{i}', metadata=dict(tags=['report'] if i == len(cells) else ['parameters'] if i == 0 else []), outputs=[], source=s) for i, s in enumerate(('n: int = 1', *cells))]
    (folder/'long.ipynb').write_text(json.dumps(dict(cells=made, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')), nbformat=4, nbformat_minor=5)))
    return ['run', str(folder/'long.ipynb'), '--out', str(folder/'out.ipynb')]


def outputs(folder): return [o for c in json.loads((folder/'out.ipynb').read_text())['cells'] for o in c.get('outputs', [])]


def once_more(run):
    "Again where another process took a port between Jupyter's choice of it and its use."
    @wraps(run)
    def twice(*args, **env):
        seen = run(*args, **env)
        return run(*args, **env) if 'Address already in use' in str(seen) else seen
    return twice


@once_more
def in_terminal(command, **env):
    "Run with a terminal as standard error: what it was sent, and what came through standard output."
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=os.environ | env)
    os.close(theirs)
    sent = []
    def listen():
        try:
            while piece := os.read(ours, 65536): sent.append(piece)
        except OSError: pass  # the terminal is closed
    t = threading.Thread(target=listen)
    t.start()
    out, _ = p.communicate(timeout=300)
    t.join(30)
    os.close(ours)
    assert p.returncode == 0, b''.join(sent)
    return b''.join(sent).decode(), out


@once_more
def piped(command, **env): return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | env)


def is_bar(sent):
    "One line, rewritten, with a share, the time that is left, and nothing at the end."
    assert re.search(r'counting: +\d+%.*<00:0\d', sent) and '\n' not in sent, sent
    assert re.search(r'\r +\r$', sent), sent[-200:]


def test_a_terminal_sees_a_bar(): is_bar(in_terminal([sys.executable, '-c', COUNT])[0])


def test_a_pipe_sees_nothing():
    p = piped([sys.executable, '-c', COUNT])
    assert (p.returncode, p.stdout, p.stderr) == (0, '', '')


def test_a_notebook_run_from_a_terminal(tmp_path):
    "Its bars are seen live; what is saved is one line of plain text, and no widget."
    sent, said = in_terminal([PARNB, *notebook(tmp_path, COUNT, "print('the'+' result')")])
    is_bar(sent)
    assert said == f"the result\nexecuted notebook: {tmp_path/'out.ipynb'}\n"
    line, report = outputs(tmp_path)
    assert list(line['data']) == ['text/plain'] and re.fullmatch(r'counting: 30/30 steps, [\d.]+ s \([\d.]+ steps/s\)', ''.join(line['data']['text/plain']))
    assert ''.join(report['text']) == 'the result\n'
    assert 'widgets' not in json.loads((tmp_path/'out.ipynb').read_text())['metadata']


@pytest.mark.parametrize('where', ['before', 'after'])
def test_quiet(tmp_path, where):
    "Nothing in a terminal, nor in the saved notebook, wherever the option stands."
    command = notebook(tmp_path, COUNT, "print('result')")
    sent, _ = in_terminal([PARNB, *(['-q', *command] if where == 'before' else [*command, '--quiet'])])
    assert sent == '' and len(outputs(tmp_path)) == 1


def test_piped_notebook(tmp_path):
    "Results on standard output; nothing on standard error, not even when the kernel is closed at once."
    p = piped([PARNB, *notebook(tmp_path, COUNT, "print('result')")])
    assert (p.returncode, p.stderr, p.stdout.splitlines()[0]) == (0, '', 'result')


def test_verbose(tmp_path):
    "A failure is a sentence, and a traceback before it only if that is asked for; the notebook's own output is logged."
    command = notebook(tmp_path, "print('on the way')\n1/0")
    short, long = piped([PARNB, *command]), piped([PARNB, *command, '--verbose'])
    for p in (short, long): assert p.returncode == 1 and p.stderr.splitlines()[-1].startswith('parnb: cell 2 of long.ipynb failed with ZeroDivisionError: division by zero'), p.stderr
    assert len(short.stderr.splitlines()) == 1
    assert 'Traceback (most recent call last)' in long.stderr and 'on the way' in long.stderr


def test_a_fault_of_ours_is_a_sentence_too(tmp_path):
    "An error that nobody foresaw names itself, and says how to see where it comes from."
    code = "import sys, parnb.cli as c\nc.find_notebook = lambda name: {}[name]\nsys.argv = ['parnb', 'run', 'x', *sys.argv[1:]]\nc.main()"
    short, long = piped([sys.executable, '-c', code]), piped([sys.executable, '-c', code, '--verbose'])
    assert short.returncode == 1 and short.stderr.count('\n') == 1 and short.stderr.startswith("parnb: KeyError: 'x'") and '--verbose' in short.stderr
    assert long.returncode == 1 and 'Traceback' in long.stderr and long.stderr.splitlines()[-1].startswith("parnb: KeyError: 'x'")
