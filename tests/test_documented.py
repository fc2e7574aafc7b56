"Commands and code that the README and the pages show: every command, option and notebook exists, and the class works."

import json
import os
import re
import shlex

import pytest
from conftest import ROOT
from processes import python

# The tree of commands with the options of each; both that take options of registered cleaners are named first.
COMMANDS = """
import json, sys
sys.argv = ["parnb", "clean", "measure", "explain"]
import typer
from parnb.cli.main import app

def tree(command):
    if hasattr(command, "commands"):
        return {name: tree(c) for name, c in command.commands.items()}
    return [o for p in command.params for o in (*p.opts, *p.secondary_opts)]

print(json.dumps(tree(typer.main.get_command(app))))
"""
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "nbs").rglob("*.ipynb"))]
OWN = {"--shrink": "nbs/tutorials/add_a_cleaner.ipynb"}  # of the class that a page registers


def text_of(path):
    "A text, or the Markdown cells of a notebook."
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")


def commands():
    "Each `parnb` command of a shell block, as words, with the file that shows it."
    for path in TEXTS:
        for block in re.findall(r"```sh\n(.*?)```", text_of(path), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|\|", re.sub(r"(^|\s)#.*", "", line)):
                    if (words := shlex.split(part))[:1] == ["parnb"]:
                        yield path, words[1:]


@pytest.fixture(scope="module")
def tree():
    return json.loads(python(os.environ, "-c", COMMANDS, check=True).stdout)


def test_commands_and_options_exist(tree):
    shown, notebooks = list(commands()), {p.stem for p in TEXTS}
    assert len(shown) > 50
    for path, words in shown:
        where, rest = tree, list(words)
        while isinstance(where, dict) and rest and not rest[0].startswith("-"):
            assert rest[0] in where, f"{path}: parnb has no {rest[0]}"
            where = where[rest.pop(0)]
        if isinstance(where, dict):  # parnb --help
            continue
        for option in (w.partition("=")[0] for w in rest if re.match(r"--?[a-z]", w)):
            assert option in [*where, "--help"] or OWN.get(option) == str(path.relative_to(ROOT)), f"{path}: {words}"
        if words[0] == "run":
            assert rest[0] in notebooks, f"{path}: there is no notebook {rest[0]}"


def test_the_class_of_the_readme_can_be_submitted(tmp_path):
    block = re.search(r"```python\n(from parnb.cleaners.*?)```", text_of(TEXTS[0]), re.S)[1]
    (tmp_path / "mine.py").write_text(block)
    code = """
import sys
from parnb.study.protocol import protocol_runs
from parnb.study.submission import submission_row, submission_stage
row = submission_row(sys.argv[1])
print(row["name"], row["label"], len(protocol_runs(submission_stage(row, ["badnet_stripes"]))))
"""
    done = python(os.environ, "-c", code, tmp_path / "mine.py")
    assert done.returncode == 0 and done.stdout.startswith("mine Mine "), done.stderr
    assert int(done.stdout.split()[-1]) > 1
