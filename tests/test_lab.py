"""JupyterLab as a user sees it: run the main notebook and read its table; open the explorer and move its sliders.

A session is started through the server's REST API before a page is opened, so that JupyterLab finds a kernel that is
ready. Every wait says what it waits for, and fails with that text, with the text of any dialog, and with the log.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import free_port

Error = pytest.importorskip("playwright.sync_api").Error

NBS = Path(__file__).parents[1] / "nbs"
SMALLEST = dict(attack="badnet_stripes", smoke=True)
SETTINGS = {"03_par_clean": SMALLEST, "explorer": SMALLEST}
START, RUN, ANSWER = 300, 1200, 600  # s to start a server, a kernel or a page, to run a notebook, to compute an answer
PATIENCE = {"Loading": "Keep Waiting", "Select Kernel": "Select"}  # what a slow machine asks, and the answer to it
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"


def copy_notebook(name: str, folder: Path):
    "A notebook without outputs, with the parameters of `SETTINGS`."
    nb = json.loads((NBS / f"{name}.ipynb").read_text(encoding="utf-8"))
    for c in nb["cells"]:
        if c["cell_type"] == "code":
            c["outputs"] = []
        if "parameters" in c["metadata"].get("tags", []):
            c["source"] = [*c["source"], "\n", *(f"{k} = {v!r}\n" for k, v in SETTINGS[name].items())]
    (folder / f"{name}.ipynb").write_text(json.dumps(nb), encoding="utf-8")


class Lab:
    "A running JupyterLab with its own data, settings and kernels."

    def __init__(self, folder: Path, port: int):
        self.folder, self.port, self.log = folder, port, folder / "lab.log"
        places = dict(
            PARNB_DATA="data",
            JUPYTER_CONFIG_DIR="config",
            JUPYTERLAB_SETTINGS_DIR="settings",
            JUPYTERLAB_WORKSPACES_DIR="workspaces",
            JUPYTER_RUNTIME_DIR="runtime",
            IPYTHONDIR="ipython",
        )
        env = os.environ | {k: str(folder / v) for k, v in places.items()} | dict(OMP_NUM_THREADS="1")
        command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", "--ip", "127.0.0.1"]
        command += ["--port", str(port), "--IdentityProvider.token=tok", "--LabApp.news_url=None"]
        command += [f"--ServerApp.root_dir={folder / 'nbs'}"]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)

    def tail(self) -> str:
        "The end of the server's log."
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def api(self, resource: str, **body) -> dict:
        "Ask the REST API; with a body, POST it."
        data = json.dumps(body).encode() if body else None
        headers = {"Authorization": "token tok", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{resource}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def wait(self, reason: str, met: Callable[[], object], seconds: float, page=None):
        "Wait until a condition is met and return its value; fail with the reason, a dialog's text, and the log."
        deadline, last = time.monotonic() + seconds, ""
        while True:
            if page is not None and (dialogs := page.locator(".jp-Dialog").all_text_contents()):
                answer = next((a for start, a in PATIENCE.items() if dialogs[0].startswith(start)), None)
                if answer is None:
                    pytest.fail(f"while waiting for {reason}, JupyterLab opened a dialog: {dialogs}")
                with suppress(Error):  # it may have closed meanwhile
                    button = page.locator(".jp-Dialog button", has_text=re.compile(f"^{answer}$"))
                    button.first.click(timeout=2000)
            try:
                if value := met():
                    return value
            except OSError as e:
                last = f" ({e})"
            if self.process.poll() is not None:
                pytest.fail(f"while waiting for {reason}, JupyterLab ended:\n{self.tail()}")
            if time.monotonic() > deadline:
                if page is not None:
                    page.screenshot(path=self.folder / "failed.png")
                pytest.fail(f"{reason}: not within {seconds} s{last}, see {self.folder}\n{self.tail()}")
            time.sleep(0.3)

    def answers(self, kernel: str, seconds: float) -> bool:
        "Whether a kernel answers in time. The question makes a new kernel report that it is idle."
        from jupyter_client import BlockingKernelClient

        file = self.folder / "runtime" / f"kernel-{kernel}.json"
        self.wait(f"the connection file {file.name}", file.exists, START)
        client = BlockingKernelClient(connection_file=str(file))
        client.load_connection_file()
        client.start_channels(hb=False)  # a kernel that starts slowly misses heartbeats
        try:
            client.wait_for_ready(timeout=seconds)
            return True
        except RuntimeError:
            return False
        finally:
            client.stop_channels()

    def start_kernel(self, name: str):
        "Start the session of a notebook, and wait until its kernel answers and is idle."
        about = dict(name="python3")
        session = self.api("sessions", path=f"{name}.ipynb", name=f"{name}.ipynb", type="notebook", kernel=about)
        kernel = session["kernel"]["id"]
        # A kernel whose port another process has taken meanwhile hangs at its start: it is started again.
        for seconds in (60, 120, START):
            if self.answers(kernel, seconds):
                break
            self.api(f"kernels/{kernel}/restart", reason="it did not answer")
        else:
            pytest.fail(f"the kernel of {name} did not answer, started three times\n{self.tail()}")

        def idle():  # the server may have missed the first report: it is asked for again
            return self.answers(kernel, 30) and self.api(f"kernels/{kernel}")["execution_state"] == "idle"

        self.wait(f"an idle kernel of {name}", idle, START)

    def stop(self):
        "End the server and its kernels."
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab over copies of both notebooks; the second finds the models of the first."
    folder = tmp_path_factory.mktemp("lab")
    (folder / "nbs").mkdir()
    for name in SETTINGS:
        copy_notebook(name, folder / "nbs")
    tracker = folder / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text('{"windowingMode": "none"}')  # cells that are out of sight are in the page too
    server = Lab(folder, free_port())
    try:
        server.wait("the REST API", lambda: server.api("status"), START)
        yield server
    finally:
        server.stop()


@pytest.fixture
def page(browser):
    "A page that collects its JavaScript errors in `faults`."
    p = browser.new_page(viewport=dict(width=1500, height=2400))
    p.faults = []
    p.on("pageerror", lambda e: p.faults.append(str(e)))
    yield p
    p.close()


def run_all(lab: Lab, page, name: str):
    "Open a notebook, run all its cells, and wait until the kernel is idle again."
    lab.start_kernel(name)
    page.set_default_timeout(1000 * START)
    page.goto(f"http://127.0.0.1:{lab.port}/lab/tree/{name}.ipynb?reset&token=tok")
    cells = page.locator(f"{PANEL} .jp-CodeCell")
    lab.wait(f"the cells of {name} in the page", cells.count, START, page)
    indicator = page.locator(f"{PANEL} .jp-Notebook-ExecutionIndicator")

    kernel = page.locator(f"{PANEL} .jp-Toolbar-kernelName")

    def idle():  # before it knows its kernel, the page reports idle too, and answers a command with a dialog
        known = kernel.count() and "Python" in kernel.first.text_content()
        return known and indicator.count() and indicator.first.get_attribute("data-status") == "idle"

    lab.wait(f"the page of {name} to find its kernel", idle, START, page)
    prompts = page.locator(f"{PANEL} .jp-CodeCell .jp-InputPrompt")

    def started():  # JupyterLab drops the command while it connects to the kernel, whatever its indicator says
        cells.first.click()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        deadline = time.monotonic() + 20
        while not (asked := any(re.search(r"[*\d]", t) for t in prompts.all_text_contents())):
            if time.monotonic() > deadline:
                break
            time.sleep(0.3)
        return asked

    lab.wait(f"the first cell of {name} to be asked for", started, START, page)

    def executed():
        texts = prompts.all_text_contents()
        return texts and all(re.search(r"\d", t) for t in texts) and idle()

    lab.wait(f"all cells of {name} to run", executed, RUN, page)
    assert not page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_text_contents()


def test_main_notebook(lab, page, tmp_path):
    "The main notebook shows no error, one line of progress per training, and a table with the result."
    run_all(lab, page, "03_par_clean")
    page.screenshot(path=tmp_path / "main.png")
    warnings = page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_text_contents()
    assert all("did not succeed" in t for t in warnings), warnings  # which the smallest form may well say
    assert page.locator(".jp-OutputArea-output", has_text="attack_success_rate_low").count() == 1
    lines = [t.strip() for t in page.locator(".jp-OutputArea-output").all_text_contents() if "pairs/s" in t]
    assert len(lines) == 2 and all(t.count("\n") == 0 and "512/512 pairs" in t for t in lines), lines
    assert not page.faults


def test_explorer(lab, page, tmp_path):
    "The sliders of the explorer change what is said of the cleaned model; each cleaner has its own."
    run_all(lab, page, "explorer")
    image, table = page.locator(".widget-html img"), page.locator(".widget-html table")

    def described():
        return image.get_attribute("alt") if image.count() else ""

    def slider(name):
        label = page.locator(".widget-label", has_text=re.compile(f"^{name}$"))
        return page.locator(".widget-hslider", has=label).locator(".noUi-handle")

    def menu(name):
        label = page.locator(".widget-label", has_text=re.compile(f"^{name}$"))
        return page.locator(".widget-dropdown", has=label).locator("select")

    def models():
        return page.locator(".widget-html th").all_text_contents()

    lab.wait("the answers of the cleaned model", lambda: "PAR, τ 2.15 says" in described(), ANSWER, page)
    lab.wait("four measured rates", lambda: table.text_content().count("%") == 4, ANSWER, page)
    page.screenshot(path=tmp_path / "explorer.png")
    slider("τ").focus()
    page.keyboard.press("ArrowLeft")
    lab.wait("the name of the model with τ 2", lambda: "PAR, τ 2" in models(), ANSWER, page)
    lab.wait("a table without rates of that model", lambda: "not measured yet" in table.text_content(), ANSWER, page)
    button = page.get_by_role("button", name="compute (about 20 s)")
    lab.wait("the button that offers to compute it", button.is_visible, ANSWER, page)
    for name in ("image", "size"):
        before = described()
        slider(name).focus()
        page.keyboard.press("ArrowRight")
        lab.wait(f"another picture after moving {name}", lambda b=before: described() not in ("", b), ANSWER, page)
    page.screenshot(path=tmp_path / "changed.png")
    assert "entrenched" in menu("regime").locator("option").all_text_contents()
    menu("method").select_option(label="CleanCLIP")
    lab.wait("the slider of CleanCLIP", lambda: slider("λ").count() == 1, ANSWER, page)
    lab.wait("the name of the other model", lambda: any(m.startswith("CleanCLIP, λ") for m in models()), ANSWER, page)
    assert slider("τ").count() == 0 and not page.faults
