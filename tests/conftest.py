"What the browser tests share."
import shutil
import socket

import pytest

FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']


@pytest.fixture(scope='session')
def browser():
    "A headless Chromium, by playwright."
    from playwright.sync_api import Error, sync_playwright
    found = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    with sync_playwright() as p:
        try: b = p.chromium.launch(executable_path=found, args=FLAGS)
        except Error: pytest.skip('there is no browser here: install one by .ci/browser or `playwright install chromium`')
        yield b
        b.close()


@pytest.fixture
def port():
    "A free port of this machine."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]
