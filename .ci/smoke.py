"""Papermill over every run notebook in its smallest form, one on each core.

    python .ci/smoke.py EXECUTED

Writes the executed notebooks into the folder EXECUTED. A notebook that fails, that has no tagged cell of parameters, or
that does not know `smoke`, is printed with what went wrong; the exit code is then 1. One process starts papermill for
many notebooks, and one that has loaded torch is forked for each kernel: both take as long as many notebooks do.
"""

import json
import logging
import os
import sys
import uuid
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory

import papermill
from jupyter_client.manager import AsyncKernelManager

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "torch",
    "open_clip",
    "pandas",
    "scipy.stats",
)  # not matplotlib, which a kernel sets up before it is loaded


class FileKernel(AsyncKernelManager):
    "Talks to its kernel over files. Ports are chosen before they are bound, and another process may take them first."

    def __init__(self, **kwargs):
        file = Path(os.environ["JUPYTER_PATH"]) / f"{uuid.uuid4().hex}.json"
        super().__init__(transport="ipc", connection_file=str(file), ip=str(file.with_suffix("")), **kwargs)


class Warnings(logging.Handler):
    "Keeps what papermill warns of: parameters that a notebook does not know, or that it has no cell for."

    def __init__(self):
        super().__init__(logging.WARNING)
        self.found = []

    def emit(self, record):
        self.found.append(record.getMessage())


def make_kernel(folder: Path):
    "Add a kernel `forked` to those that are known; the server behind it."
    sys.path.append(str(ROOT / "tests"))
    from forks import Server

    server = Server(LIBRARIES, dict(os.environ))
    (folder / "kernels" / "forked").mkdir(parents=True)
    spec = dict(argv=[*server.client, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    spec |= dict(display_name="Python 3", language="python")
    (folder / "kernels" / "forked" / "kernel.json").write_text(json.dumps(spec))
    os.environ["JUPYTER_PATH"] = str(folder)
    return server


def run(notebook: Path, executed: Path) -> str:  # empty: it works
    "Execute a notebook; what went wrong, in words."
    warned = Warnings()
    logging.getLogger("papermill").addHandler(warned)
    try:
        how = dict(kernel_name="forked", kernel_manager_class=FileKernel, progress_bar=False, log_output=False)
        papermill.execute_notebook(notebook, executed / notebook.name, parameters=dict(smoke=True), **how)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    finally:
        logging.getLogger("papermill").removeHandler(warned)
    return "\n".join(warned.found)


def main(executed: Path) -> int:
    places = [ROOT / "nbs" / folder for folder in ("tutorials", "", "figures", "tables")]
    notebooks = [n for place in places for n in sorted(place.glob("*.ipynb")) if n.name != "index.ipynb"]
    # a page of text runs nothing
    notebooks = [n for n in notebooks if '"cell_type": "code"' in n.read_text(encoding="utf-8")]
    broken = 0
    with TemporaryDirectory() as d:
        server = make_kernel(Path(d))
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            running = {pool.submit(run, n, executed): n.relative_to(ROOT) for n in notebooks}
            for done in as_completed(running):
                wrong = done.result()
                broken += bool(wrong)
                print(f"broken: {running[done]}\n{wrong}" if wrong else f"ok {running[done]}", flush=True)
        server.stop()
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
