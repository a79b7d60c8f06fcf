"""Every notebook in a real JupyterLab: it opens, runs from top to bottom, and draws what it promises.

Needs Chromium and playwright (`pip install playwright`; Debian: `apt-get install chromium`) and is skipped without them.
KWSPOT_SCREENSHOTS names a folder for a picture of each notebook.
"""
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
browser_path = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
if not browser_path: pytest.skip('no Chromium on this machine', allow_module_level=True)
flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--autoplay-policy=no-user-gesture-required']
token = 'kwspot'
outputs_script = """() => {
  const widget = jupyterapp.shell.currentWidget, cells = [...widget.content.model.cells].filter(c => c.type === 'code');
  return {
    unrun: cells.filter(c => c.sharedModel.source.trim() && c.executionCount === null).length,
    errors: cells.flatMap(c => c.outputs.toJSON()).filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue),
    promised: cells.flatMap(c => c.outputs.toJSON()).filter(o => o.data && o.data['application/vnd.plotly.v1+json']).length,
    plots: [...document.querySelectorAll('.js-plotly-plot .main-svg:first-child')].length,
    empty_plots: [...document.querySelectorAll('.js-plotly-plot')]
      .filter(p => !p.querySelector('.trace, .bars, .heatmaplayer image, .scatterlayer path')).length,
    silent_players: [...document.querySelectorAll('.jp-NotebookPanel audio')].filter(a => !(a.duration > 0)).length,
    empty_images: [...document.querySelectorAll('.jp-OutputArea img')].filter(i => !i.naturalWidth).length,
  }
}"""


@pytest.fixture(scope='module')
def lab():
    "The address of a JupyterLab that serves the repository."
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
               f'--IdentityProvider.token={token}', '--LabApp.expose_app_in_browser=True', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
               '--LabApp.news_url=None']
    server = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'})
    address = f'http://127.0.0.1:{port}'
    for _ in range(240):
        with contextlib.suppress(OSError), urllib.request.urlopen(f'{address}/api/status?token={token}', timeout=5): break
        time.sleep(0.25)
    yield address
    server.terminate()
    server.wait(20)


@pytest.fixture(scope='module')
def browser():
    "Headless Chromium."
    with playwright.sync_playwright() as play:
        running = play.chromium.launch(executable_path=browser_path, headless=True, args=flags)
        yield running
        running.close()


def run_all(page) -> dict:
    "Run every cell of the open notebook and say what came of it."
    page.wait_for_selector('.jp-NotebookPanel .jp-Cell', timeout=60_000)
    idle = "() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    page.wait_for_function(idle, timeout=60_000)
    page.evaluate("() => { jupyterapp.shell.currentWidget.content.notebookConfig = "
                  "{...jupyterapp.shell.currentWidget.content.notebookConfig, windowingMode: 'none'} }")
    page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("""() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle' &&
        [...jupyterapp.shell.currentWidget.content.model.cells].every(c => c.type !== 'code' || !c.sharedModel.source.trim() || c.executionCount !== null
        || [...jupyterapp.shell.currentWidget.content.model.cells].some(d => d.type === 'code' && d.outputs.toJSON().some(o => o.output_type === 'error')))""",
                           timeout=180_000)
    page.wait_for_timeout(1500)
    return page.evaluate(outputs_script)


def screenshot(page, name: str) -> None:
    "A picture of the whole notebook, where one is wanted."
    folder = os.environ.get('KWSPOT_SCREENSHOTS')
    if not folder: return
    Path(folder).mkdir(parents=True, exist_ok=True)
    page.evaluate("() => { if (!jupyterapp.shell.leftCollapsed) jupyterapp.commands.execute('application:toggle-left-area') }")
    page.add_style_tag(content='.Toastify {display: none}')
    height = page.evaluate("() => Math.ceil(document.querySelector('.jp-NotebookPanel .jp-WindowedPanel-outer').scrollHeight) + 200")
    page.set_viewport_size({'width': 1280, 'height': min(height, 16_000)})
    page.wait_for_timeout(800)
    page.screenshot(path=Path(folder) / f'{name}.png')


@pytest.mark.parametrize('name', sorted(path.stem for path in (root / 'nbs').glob('*.ipynb')))
def test_notebook(lab, browser, name):
    page = browser.new_page(viewport={'width': 1280, 'height': 1000})
    failed, crashed = [], []
    page.on('requestfailed', lambda request: failed.append(request.url))
    page.on('response', lambda response: failed.append(f'{response.status} {response.url}') if response.status >= 400 else None)
    page.on('pageerror', lambda error: crashed.append(str(error)))
    page.goto(f'{lab}/lab/tree/nbs/{name}.ipynb?token={token}&reset')
    try:
        seen = run_all(page)
        screenshot(page, name)
    finally:
        page.evaluate("async () => { const w = window.jupyterapp?.shell?.currentWidget; if (w) { await w.sessionContext.shutdown(); w.context.dispose?.() } }")
        page.close()
    assert not seen['errors'] and not seen['unrun'], seen
    assert seen['plots'] == seen['promised'] and not seen['empty_plots'] and not seen['silent_players'] and not seen['empty_images'], seen
    outside = [url for url in failed if '127.0.0.1' not in url]
    assert not crashed and not outside, (crashed, outside)
    assert not [url for url in failed if url not in outside and '/api/' not in url], failed
