"What several test files share: a browser, a free port, some images, and parnb as installed from its wheel."

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from processes import STARTED

ROOT = Path(__file__).resolve().parents[1]
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"]
BROWSER_FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
BROWSER_START_MS = 180_000  # Chromium's first start, while other processes use every core

# Run in a new network namespace, which has only a loopback interface: kernels talk over it.
WITHOUT_NETWORK = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up and running
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def _end_what_was_started():
    "A test that fails leaves no training behind."
    yield
    for p in STARTED:
        if p.poll() is None:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
    STARTED.clear()


@pytest.fixture(autouse=True)
def _leave_the_environment_as_it_was():
    "Commands of later tests are forked only in the environment that they are expected in."
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def browser():
    "A headless Chromium, driven by playwright."
    from playwright.sync_api import Error, sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as p:
        try:
            b = p.chromium.launch(executable_path=found, args=BROWSER_FLAGS, timeout=BROWSER_START_MS)
        except Error as e:
            if found:
                pytest.fail(f"{found} does not start: {e}")
            lacking("no browser: install one with .ci/browser or `playwright install chromium`")
        yield b
        b.close()


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    "A folder of four images for each of six classes."
    from small_scale import make_classes

    return make_classes(tmp_path_factory.mktemp("images"))


def free_port():
    "A free port of this machine."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def lacking(what):
    "Skip a test for want of something; where the project's own workflows run, they must provide it."
    (pytest.fail if "GITHUB_ACTIONS" in os.environ else pytest.skip)(what)


def offline():
    "The prefix of a command that cuts its network. Skips the test where new namespaces are not allowed."
    for unshare in (["unshare", "-n"], ["unshare", "-rn"]):
        prefix = [*unshare, sys.executable, "-c", WITHOUT_NETWORK]
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    lacking("unshare is not allowed here: the network cannot be cut")


class Installation:
    "A fresh virtual environment with parnb's wheel, its own home folder, and an empty working folder."

    def __init__(self, folder: Path):
        self.folder, self.home, self.work = folder, folder / "home", folder / "empty"
        self.bin = folder / "venv" / "bin"
        self.python = self.bin / "python"
        for f in (self.home, self.work):
            f.mkdir()

    def env(self):
        "The environment of a user who has set nothing."
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PARNB_", "PYTHON", "JUPYTER", "XDG_"))}
        kept.pop("VIRTUAL_ENV", None)
        return kept | {"HOME": str(self.home), "PATH": f"{self.bin}:/usr/bin:/bin", "IPYTHONDIR": str(self.home / "i")}

    def pip_install(self, *what):
        pip = [self.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *what]
        done = subprocess.run(pip, capture_output=True, text=True, env=self.env() | {"HOME": os.environ["HOME"]})
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *command, timeout=600, **env):
        "Run a command of the environment in the empty folder, without a network where the system allows that."
        command = [str(self.bin / command[0]), *map(str, command[1:])]
        return subprocess.run(
            [*offline(), *command],
            cwd=self.work,
            env=self.env() | env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


@pytest.fixture(scope="session")
def distributions(tmp_path_factory):
    "Wheel and sdist of this checkout; the wheel is built from the sdist."
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "dist"
    with FileLock(f"{out}.lock"):  # the first process of the tests builds them, and the others find them
        if len([*out.glob("*")]) < 2:
            done = subprocess.run([sys.executable, "-m", "build", "-o", out, ROOT], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def installation(distributions, tmp_path_factory):
    "parnb's wheel in a fresh environment, with the versions of requirements.lock."
    folder = tmp_path_factory.mktemp("installation")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    made = Installation(folder)
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines(keepends=True)
    # torch and torchvision come in the build for which pip is configured on this machine
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(line for line in locked if not line.startswith(("torch==", "torchvision=="))))
    made.pip_install("-c", constraints, distributions[0])
    return made
