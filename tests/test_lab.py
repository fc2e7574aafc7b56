"A person's way through JupyterLab: open the main notebook, run it, read its table; open the explorer, move a slider by keyboard, see the numbers change."
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

NBS = Path(__file__).parents[1]/'nbs'
SETTINGS = {'03_par_clean': dict(attack='badnet_stripes', smoke=True), 'explorer': dict(attack='badnet_stripes', smoke=True)}


def copied(name, folder):
    "A copy of a notebook, without outputs, whose parameters are those of `SETTINGS`."
    nb = json.loads((NBS/f'{name}.ipynb').read_text(encoding='utf-8'))
    for c in nb['cells']:
        if c['cell_type'] == 'code': c['outputs'] = []
        if 'parameters' in c['metadata'].get('tags', []): c['source'] = [*c['source'], '\n', *(f'{k} = {v!r}\n' for k, v in SETTINGS[name].items())]
    (folder/f'{name}.ipynb').write_text(json.dumps(nb), encoding='utf-8')


@pytest.fixture
def lab(tmp_path, port):
    "JupyterLab over copies of both notebooks, with a data folder and settings of its own: its address."
    (tmp_path/'nbs').mkdir()
    for name in SETTINGS: copied(name, tmp_path/'nbs')
    tracker = tmp_path/'settings'/'@jupyterlab'/'notebook-extension'/'tracker.jupyterlab-settings'
    tracker.parent.mkdir(parents=True)
    tracker.write_text('{"windowingMode": "none"}')  # cells out of sight are in the page too
    env = os.environ | dict(PARNB_DATA=str(tmp_path/'data'), OMP_NUM_THREADS='1', JUPYTER_CONFIG_DIR=str(tmp_path/'config'), JUPYTERLAB_SETTINGS_DIR=str(tmp_path/'settings'),
                            JUPYTERLAB_WORKSPACES_DIR=str(tmp_path/'workspaces'), JUPYTER_RUNTIME_DIR=str(tmp_path/'runtime'), IPYTHONDIR=str(tmp_path/'ipython'))
    command = [sys.executable, '-m', 'jupyterlab', '--allow-root', '--no-browser', '--ip', '127.0.0.1', '--port', str(port), '--IdentityProvider.token=tok', f'--ServerApp.root_dir={tmp_path/"nbs"}', '--LabApp.news_url=None']
    with open(tmp_path/'lab.log', 'w') as log: p = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic()+120
        while True:
            try:
                with urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token=tok', timeout=5): break
            except OSError: assert p.poll() is None and time.monotonic() < deadline, (tmp_path/'lab.log').read_text()
            time.sleep(0.2)
        yield f'http://127.0.0.1:{port}/lab/tree/{{}}.ipynb?reset&token=tok'
    finally:
        p.terminate()
        try: p.wait(30)
        except subprocess.TimeoutExpired: p.kill()


def run_all(page, address, seconds=300):
    "Open a notebook, run all its cells, and wait until the kernel rests."
    page.set_default_timeout(1000*seconds)
    page.goto(address)
    page.wait_for_selector('.jp-Notebook .jp-CodeCell')
    idle = '.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator[data-status="idle"]'
    page.wait_for_selector(idle)
    page.click('.jp-Notebook .jp-CodeCell >> nth=0')
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    page.wait_for_function("() => { const c = [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell .jp-InputPrompt')].map(e => e.textContent); return c.length && c.every(t => /\\d/.test(t)); }")
    page.wait_for_selector(idle)


def test_the_main_notebook_and_the_explorer(lab, browser, tmp_path):
    "No error is shown, the result is a table; in the explorer an arrow key on tau changes what is said of the cleaned model."
    faults = []
    def new_page():
        page = browser.new_page(viewport=dict(width=1500, height=2400))
        page.on('pageerror', lambda e: faults.append(str(e)))
        return page
    page = new_page()
    run_all(page, lab.format('03_par_clean'))
    page.screenshot(path=tmp_path/'main.png')
    assert not page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_text_contents()
    assert all('did not take' in t for t in page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_text_contents())  # which the smallest form may well say
    assert page.locator('.jp-OutputArea-output', has_text='attack_success_rate_low').count() == 1
    lines = [t.strip() for t in page.locator('.jp-OutputArea-output').all_text_contents() if 'pairs/s' in t]
    assert len(lines) == 2 and all(t.count('\n') == 0 and '512/512 pairs' in t for t in lines), lines  # progress: one line a training
    page.close()
    page = new_page()
    run_all(page, lab.format('explorer'))
    page.wait_for_function("() => { const i = document.querySelector('.widget-html img'); return i && i.alt.includes('PAR, τ 2.15 says'); }")
    page.screenshot(path=tmp_path/'explorer.png')
    seen = page.locator('.widget-html table').text_content()
    assert 'PAR, τ 2.15' in seen and seen.count('%') == 4
    slider = page.locator('.noUi-handle').nth(1)
    slider.focus()
    page.keyboard.press('ArrowLeft')
    page.wait_for_function("() => [...document.querySelectorAll('.widget-html th')].some(e => e.textContent == 'PAR, τ 2')")
    assert 'not measured yet' in page.locator('.widget-html table').text_content() and page.get_by_role('button', name='compute (about 20 s)').is_visible()
    page.locator('.noUi-handle').nth(2).focus()  # the image
    page.keyboard.press('ArrowRight')
    page.wait_for_function("() => !document.querySelector('.widget-html img').alt.includes(%s)" % json.dumps(page.locator('.widget-html img').get_attribute('alt')))
    page.screenshot(path=tmp_path/'changed.png')
    assert not faults
    page.close()
