"""Every notebook in a real JupyterLab: it opens, runs from top to bottom, draws what it promises, and its panels answer.

Needs playwright (in the dev extra) and Chromium (Debian: `apt-get install chromium`; elsewhere `python -m playwright install chromium`) and
is skipped without them. Cells flagged `slow` or `data` are left as they are stored, as by `nbdev_test`; KWSPOT_LAB_SLOW=1 runs them too.
KWSPOT_SCREENSHOTS names a folder for a picture of each notebook. On Linux the kernels are forked from a process that has imported TensorFlow
(`warm_kernel.py`), which saves minutes; KWSPOT_LAB_COLD=1 starts each as Jupyter does.
"""
import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted(path.stem for path in (root / 'nbs').glob('*.ipynb'))
playwright = pytest.importorskip('playwright.sync_api', reason='the browser test needs playwright: pip install ".[dev]"')
token, patience = 'kwspot', 240  # of the server; seconds without any progress, on whatever machine
at_once = min(os.cpu_count() or 1, 4) + 1  # notebooks open at the same time; each takes a gigabyte
environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', 'PYTHONPATH': str(root)}  # whose kwspot nbdev_test has compiled already
slow = bool(os.environ.get('KWSPOT_LAB_SLOW'))
dear = ['67_tutorial', '50_training', 'index', '71_export', '47_stateful', '12_measures', '70_streaming']  # first: at the end each would run alone
flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--autoplay-policy=no-user-gesture-required', '--disable-background-timer-throttling',
         '--disable-renderer-backgrounding', '--disable-backgrounding-occluded-windows',
         '--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream']

still_script = """addEventListener('DOMContentLoaded', () => {
  const style = document.createElement('style');
  style.textContent = '*, ::before, ::after {animation: none !important; transition: none !important}';
  document.head.append(style);
})"""  # drawing without a graphics card costs as much as the notebooks
restored_script = """() => {
  if (window.jupyterapp?.restored && window.restored === undefined) {
    window.restored = false;
    jupyterapp.restored.then(() => { window.restored = true; });
  }
  return window.restored === true;
}"""
open_script = """(path) => {
  if (!jupyterapp.shell.leftCollapsed) jupyterapp.commands.execute('application:toggle-left-area');
  jupyterapp.commands.execute('docmanager:open', {path, factory: 'Notebook'});
}"""
ready_script = """(path) => {
  const panel = jupyterapp.shell.currentWidget, kernel = panel?.sessionContext?.session?.kernel;
  return panel?.context?.path === path && panel.content?.widgets?.length > 0 && kernel?.status === 'idle';
}"""
start_script = """(slow) => {
  const notebook = jupyterapp.shell.currentWidget.content;
  notebook.notebookConfig = {...notebook.notebookConfig, windowingMode: 'none', scrollPastEnd: false};  // no empty page after the last cell
  const source = cell => cell.model.sharedModel.source;
  const wanted = cell => cell.model.type === 'code' && source(cell).trim() && (slow || !/^#\\|\\s*(slow|data)\\b/m.test(source(cell)));
  window.wanted = notebook.widgets.map((cell, i) => i).filter(i => wanted(notebook.widgets[i]));
  window.finished = !window.wanted.length;
  if (window.finished) return;
  notebook.deselectAll();
  notebook.activeCellIndex = window.wanted[0];
  for (const i of window.wanted) notebook.select(notebook.widgets[i]);
  jupyterapp.commands.execute('notebook:run-cell').finally(() => { window.finished = true; });
}"""
ended_script = """() => {
  const widgets = jupyterapp.shell.currentWidget.content.widgets;
  return window.wanted.filter(i => widgets[i].model.executionCount !== null).length;
}"""
done_script = """() => {
  const status = jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status ?? 'dead';
  if (['dead', 'autorestarting', 'terminating'].includes(status)) throw new Error(`the kernel ended: ${status}`);
  return window.finished && status === 'idle';
}"""
load_script = """() => {
  for (const player of document.querySelectorAll('.jp-NotebookPanel audio[preload=none]')) { player.preload = 'metadata'; player.load(); }
}"""
look_script = """() => {
  const notebook = jupyterapp.shell.currentWidget.content, cells = [];
  notebook.widgets.forEach((cell, i) => {
    if (cell.model.type !== 'code') return;
    const outputs = cell.model.outputs.toJSON(), find = selector => [...cell.node.querySelectorAll(selector)], ran = window.wanted.includes(i);
    cells.push({
      number: i, ran, unrun: ran && cell.model.executionCount === null,
      errors: outputs.filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`),
      warnings: ran ? outputs.filter(o => o.name === 'stderr').map(o => `${o.text}`.slice(0, 200)) : [],
      kinds: outputs.map(o => Object.keys(o.data ?? {})),
      hidden: outputs.filter(o => !o.data || Object.keys(o.data).length).length - find('.jp-OutputArea-child .jp-OutputArea-output').length,
      plots: find('.js-plotly-plot .main-svg:first-child').length,
      empty_plots: find('.js-plotly-plot').filter(p => !p.querySelector('.trace, .bars, .heatmaplayer image, .scatterlayer path')).length,
      silent: ran ? find('.jp-OutputArea audio').filter(a => !(a.duration > 0)).length : 0,
      empty_images: find('.jp-OutputArea img:not(.plot-img)').filter(image => !image.complete || !image.naturalWidth).length,
      dead_widgets: find('.jupyter-widgets-error, .jp-OutputArea-output').filter(
        o => o.className.includes('widgets-error') || /Error displaying widget|Loading widget/.test(o.textContent)).length,
    });
  });
  return cells;
}"""
close_script = """async () => {
  const panel = window.jupyterapp?.shell?.currentWidget;
  if (panel?.sessionContext) { await panel.sessionContext.shutdown(); panel.dispose(); }
}"""


def broken_notebook() -> dict:
    "A notebook with the faults that the test must find."
    sources = ['1 / 0', 'never = "run after an error"']
    promised = {'output_type': 'display_data', 'metadata': {}, 'data': {'image/png': '', 'text/plain': ['a picture']}}
    code = {'cell_type': 'code', 'execution_count': None, 'metadata': {}, 'outputs': []}
    cells = [{**code, 'source': 'print("no picture")', 'outputs': [promised]}, *({**code, 'source': source} for source in sources)]
    kernel = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    return {'cells': cells, 'metadata': kernel, 'nbformat': 4, 'nbformat_minor': 4}


def stop(process: subprocess.Popen) -> None:
    "End a process, and wait until it has."
    process.terminate()
    try: process.wait(patience)
    except subprocess.TimeoutExpired: process.kill()


@pytest.fixture(scope='module')
def browser():
    "Headless Chromium, the system's or playwright's."
    with playwright.sync_playwright() as play:
        names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
        path = next(filter(None, map(shutil.which, names)), play.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip('no Chromium on this machine: apt-get install chromium, or python -m playwright install chromium')
        running = play.chromium.launch(executable_path=path, headless=True, args=flags)
        yield running
        running.close()


@pytest.fixture(scope='module')
def kernels() -> Iterator[dict[str, str]]:
    "What makes JupyterLab start kernels in which TensorFlow is imported already; nothing where a process cannot be forked safely."
    if sys.platform != 'linux' or os.environ.get('KWSPOT_LAB_COLD'):
        yield {}
        return
    script = Path(__file__).with_name('warm_kernel.py')
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which may be too long for the name of a socket
        address, place = Path(folder) / 'line', Path(folder) / 'kernels' / 'python3'
        serving = subprocess.Popen([sys.executable, script, 'serve', address], stderr=subprocess.DEVNULL, env=environment)
        place.mkdir(parents=True)
        command = [sys.executable, '-S', '-E', str(script), str(address), '{connection_file}']
        (place / 'kernel.json').write_text(json.dumps({'argv': command, 'display_name': 'python3', 'language': 'python'}), encoding='utf-8')
        while not address.exists() and serving.poll() is None: time.sleep(0.1)
        assert serving.poll() is None, 'the process that kernels are forked from has ended'
        yield {'JUPYTER_PATH': os.pathsep.join(filter(None, [folder, os.environ.get('JUPYTER_PATH')]))}
        stop(serving)


@pytest.fixture(scope='module')
def lab(browser, kernels, tmp_path_factory) -> Iterator[str]:
    "The address of a JupyterLab that serves a copy of the notebooks."
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp('lab')
    shutil.copytree(root / 'nbs', home / 'nbs', symlinks=False, ignore_dangling_symlinks=True)
    (home / 'nbs' / 'broken.ipynb').write_text(json.dumps(broken_notebook()), encoding='utf-8')
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
               f'--IdentityProvider.token={token}', '--LabApp.expose_app_in_browser=True', f'--ServerApp.root_dir={home}',
               '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.news_url=None', '--LabApp.extension_manager=readonly',
               '--LanguageServerManager.autodetect=False']
    places = {'JUPYTERLAB_SETTINGS_DIR': str(home / 'settings'), 'JUPYTERLAB_WORKSPACES_DIR': str(home / 'workspaces')}
    server = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env={**environment, **kernels, **places})
    address, end = f'http://127.0.0.1:{port}', time.monotonic() + patience
    while time.monotonic() < end:
        assert server.poll() is None, 'JupyterLab has ended'
        with contextlib.suppress(OSError), urllib.request.urlopen(f'{address}/api/status?token={token}', timeout=patience): break
        time.sleep(0.25)
    yield address
    stop(server)


def until(page, script: str, argument=None, *, seconds: float = patience, what: str = '', progress: str = 'null') -> Iterator[None]:
    "Yield until a script says true, or until for so many seconds nothing has changed in what another script says."
    end, before = time.monotonic() + seconds, None
    while not page.evaluate(script, argument):
        if time.monotonic() > end:
            if (now := page.evaluate(progress)) == before: raise TimeoutError(what or script)
            end, before = time.monotonic() + seconds, now
        yield


box = '.jp-OutputArea .widget-vbox'  # of the first panel of a notebook
values_script = """([box, selector]) => [...document.querySelector(box).querySelectorAll(selector)].map(part => part.src ?? part.textContent)"""
changed_script = """([box, selector, before]) => {
  const now = [...document.querySelector(box).querySelectorAll(selector)].map(part => part.src ?? part.textContent);
  return now.length === before.length && now.every((value, i) => value !== before[i]);
}"""


def changes(page, selector: str, act) -> Iterator[None]:
    "Do something to the first panel, and wait until everything in it that the selector finds has changed."
    before = page.evaluate(values_script, [box, selector])
    assert before, f'the panel has no {selector}'
    act()
    yield from until(page, changed_script, [box, selector, before], what=f'{selector} of the panel did not change')


def sounds(page) -> Iterator[None]:
    "Wait until every player of the first panel has a sound."
    yield from until(page, "(box) => [...document.querySelector(box).querySelectorAll('audio')].every(player => player.duration > 0)", box,
                     what='a player of the panel has no sound')


def touch_explore(page) -> Iterator[None]:
    "Another word brings other pictures and another sound; the slider moves the window."
    panel = page.locator(box).first
    yield from changes(page, 'img, audio', lambda: panel.locator('select').nth(0).select_option(label='stop'))
    yield from sounds(page)
    yield from changes(page, 'img', lambda: panel.locator('.noUi-handle').first.press('PageUp'))


def touch_review(page) -> Iterator[None]:
    "A decision brings the next clip, its picture and its sound."
    panel = page.locator(box).first
    yield from changes(page, 'img, audio', lambda: panel.get_by_role('button', name='keep').click())
    yield from sounds(page)


def touch_stream(page) -> Iterator[None]:
    "Play moves the picture; another recording brings another picture and sound; the microphone's becomes one of them."
    panel = page.locator(box).first
    yield from until(page, "(box) => document.querySelector(box).querySelectorAll('table td').length > 0", box, what='no bars')
    yield from changes(page, 'img', lambda: panel.locator('.widget-play button').first.click())
    yield from changes(page, 'img, audio', lambda: panel.locator('select').first.select_option(index=1))
    panel.get_by_role('button', name='record').click()
    yield from until(page, "(box) => [...document.querySelector(box).querySelectorAll('button')].some(button => button.textContent === 'stop')",
                     box, what='the microphone does not record')
    page.wait_for_timeout(1200)
    yield from changes(page, 'audio', lambda: panel.get_by_role('button', name='stop', exact=True).first.click())
    yield from until(page, "(box) => document.querySelector(box).querySelector('select').selectedOptions[0].textContent === 'recorded'", box,
                     what='what was recorded is not chosen')
    yield from sounds(page)


touches = {'10_exploration': touch_explore, '23_review': touch_review, '70_streaming': touch_stream}


def visit(page, name: str) -> Iterator[None]:
    "Open a notebook, run it, look at it and touch its panel; yields while it waits, returns what was seen."
    times = [time.monotonic()]
    yield from until(page, restored_script, what='JupyterLab does not start')
    page.evaluate(open_script, f'nbs/{name}.ipynb')
    yield from until(page, ready_script, f'nbs/{name}.ipynb', what='the notebook does not open')
    times.append(time.monotonic())
    page.evaluate(start_script, slow)
    yield from until(page, done_script, seconds=3 * patience, what='the cells do not end', progress=ended_script)  # one may compile for long
    times.append(time.monotonic())
    cells = yield from drawn_cells(page)
    screenshot(page, name)
    if name in touches: yield from touches[name](page)
    times.append(time.monotonic())
    return cells, [round(after - before, 1) for before, after in zip(times, times[1:])]


def drawn_cells(page) -> Iterator[None]:
    "What a notebook shows when everything is drawn, or when for a long time nothing more has been."
    page.evaluate(load_script)
    end, before = 0.0, None
    while True:
        cells = page.evaluate(look_script)
        missing = [undrawn(cell) for cell in cells]
        if missing != before: end, before = time.monotonic() + patience, missing
        if not any(missing) or time.monotonic() > end: return cells
        yield


def screenshot(page, name: str) -> None:
    "Pictures of the whole notebook, from top to bottom, where they are wanted."
    folder = os.environ.get('KWSPOT_SCREENSHOTS')
    if not folder: return
    Path(folder).mkdir(parents=True, exist_ok=True)
    page.add_style_tag(content='.Toastify {display: none}')
    page.set_viewport_size({'width': 1280, 'height': 4000})
    browser = page.context.new_cdp_session(page)  # page.screenshot() takes twice as long
    outer, place, number = "document.querySelector('.jp-NotebookPanel .jp-WindowedPanel-outer')", 0, 1
    while place < page.evaluate(f'() => {outer}.scrollHeight'):
        page.evaluate(f'(top) => {{ {outer}.scrollTop = top }}', place)
        page.wait_for_timeout(100)
        picture = browser.send('Page.captureScreenshot', {'format': 'jpeg', 'quality': 75, 'optimizeForSpeed': True})['data']
        Path(folder, f'{name}-{number}.jpg').write_bytes(base64.b64decode(picture))
        place, number = place + page.evaluate(f'() => {outer}.clientHeight'), number + 1
    browser.detach()
    page.set_viewport_size({'width': 1280, 'height': 1000})


class Tour:
    "Visits notebooks, a few at a time, and tells what was seen in each. A page of JupyterLab is used for one notebook after the other."
    def __init__(self, browser, lab: str, names: list[str]):
        self.browser, self.lab, self.waiting, self.idle, self.open, self.seen = browser, lab, list(names), [], {}, {}

    def new_page(self):
        "A page with an empty JupyterLab, and the list of what goes wrong in it."
        page, trouble = self.browser.new_page(viewport={'width': 1280, 'height': 1000}), []
        page.set_default_timeout(1000 * patience)
        page.add_init_script(still_script)
        page.on('requestfailed', lambda request: trouble.append(f'failed request {request.url}'))
        page.on('response', lambda answer: trouble.append(f'answer {answer.status} {answer.url}') if answer.status >= 400 else None)
        page.on('pageerror', lambda error: trouble.append(f'page error {error}'))
        page.goto(f'{self.lab}/lab/workspaces/{len(self.open)}-{len(self.seen)}?token={token}&reset', wait_until='commit')
        return page, trouble

    def begin(self, name: str) -> None:
        "Open a notebook."
        try: page, trouble = self.idle.pop() if self.idle else self.new_page()
        except playwright.Error as error:
            self.seen[name] = {'cells': [], 'problem': f'JupyterLab does not open: {error}', 'trouble': [], 'seconds': [0]}
            return
        self.open[name] = page, visit(page, name), trouble, time.monotonic()

    def end(self, name: str, cells: list, problem: str, parts: list | None = None) -> None:
        "Keep what was seen, and close the notebook and its kernel; a page in which something went wrong is not used again."
        page, _, trouble, started = self.open.pop(name)
        self.seen[name] = {'cells': cells, 'problem': problem, 'trouble': list(trouble),
                           'seconds': [round(time.monotonic() - started, 1), *(parts or [])]}  # in all; to open, to run, to look
        with contextlib.suppress(playwright.Error): page.evaluate(close_script)
        trouble.clear()  # what closing causes does not count
        if problem: page.close()
        else: self.idle.append((page, trouble))

    def __call__(self, name: str) -> dict:
        "What was seen in a notebook: cells, problem, trouble, seconds."
        while name not in self.seen:
            while self.waiting and len(self.open) < at_once: self.begin(self.waiting.pop(0))
            for each, (page, steps, _, _) in list(self.open.items()):
                try: next(steps)
                except StopIteration as stop: self.end(each, stop.value[0], '', stop.value[1])
                except (TimeoutError, AssertionError, playwright.Error) as error: self.end(each, [], f'{type(error).__name__}: {error}')
                else: page.wait_for_timeout(100)
        return self.seen[name]


@pytest.fixture(scope='module')
def tour(browser, lab, request) -> Iterator[Tour]:
    "A tour of the notebooks that were asked for."
    items = [item for item in request.session.items if item.path == Path(__file__)]
    names = [item.callspec.params['name'] for item in items if hasattr(item, 'callspec')]
    names.sort(key=lambda name: dear.index(name) if name in dear else len(dear))
    running = Tour(browser, lab, [*names, *(['broken'] if len(names) < len(items) else [])])
    yield running
    folder = os.environ.get('KWSPOT_SCREENSHOTS')
    if folder: Path(folder, 'seconds.json').write_text(json.dumps({name: seen['seconds'] for name, seen in running.seen.items()}, indent=1))


def promised_kinds(path: Path) -> dict[int, set[str]]:
    "The figures and players that the stored outputs of each cell hold."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells'] if path.is_file() else broken_notebook()['cells']
    return {i: {kind for output in cell.get('outputs', []) for kind in kinds(output.get('data', {}))} for i, cell in enumerate(cells)}


def kinds(data) -> set[str]:
    "What of an output a reader would miss."
    found = {'a plot' for kind in data if 'plotly' in kind} | {'a picture' for kind in data if kind.startswith('image/')}
    return found | {'a panel' for kind in data if 'widget-view' in kind}


def undrawn(cell: dict) -> list[str]:
    "What of a cell's outputs is not on the page, or not yet."
    lines = ['a plot is not drawn'] if cell['plots'] != sum('a plot' in kinds(data) for data in cell['kinds']) else []
    for key, text in (('hidden', 'an output does not show'), ('empty_plots', 'an empty plot'), ('empty_images', 'an empty picture'),
                      ('silent', 'a player without a sound'), ('dead_widgets', 'a panel that does not show')):
        if cell[key] > 0: lines.append(text)
    return lines


def complaints(name: str, seen: dict) -> list[str]:
    "What is wrong with a notebook, a line each."
    promised, said = promised_kinds(root / 'nbs' / f'{name}.ipynb'), [seen['problem']] if seen['problem'] else []
    for cell in seen['cells']:
        drawn = {kind for data in cell['kinds'] for kind in kinds(data)}
        if 'a panel' in drawn: drawn |= {'a picture'}  # whose picture is stored
        lines = [*cell['errors'], *cell['warnings'], *(f'{kind} is missing' for kind in sorted(promised.get(cell['number'], set()) - drawn))]
        if cell['unrun']: lines.append('was not run')
        said += [f'{name}, cell {cell["number"]}: {line}' for line in lines + undrawn(cell)]
    return said + [f'{name}: {line}' for line in seen['trouble'] if not harmless(line)]


def harmless(line: str) -> bool:
    "Answers of the server that JupyterLab asks for and does without, and sounds of a panel that were replaced while they loaded."
    return 'page error' not in line and ('request blob:' in line or '127.0.0.1' in line and '/api/' in line)


@pytest.mark.parametrize('name', notebooks)
def test_notebook(tour, name):
    said = complaints(name, tour(name))
    if said: pytest.fail('\n'.join(said), pytrace=False)


def test_a_broken_notebook_is_noticed(tour):
    said = '\n'.join(complaints('broken', tour('broken')))
    assert 'cell 0: a picture is missing' in said and 'cell 1: ZeroDivisionError: division by zero' in said and 'cell 2: was not run' in said


def test_plotly_figures_of_the_site_need_no_network(browser, tmp_path):
    import plotly
    from plotly import graph_objects
    shutil.copy(Path(plotly.__file__).parent / 'package_data' / 'plotly.min.js', tmp_path)
    figure = json.loads(graph_objects.Figure(graph_objects.Bar(x=['</script>', 'b'], y=[1, 2])).to_json())
    cell = {'cell_type': 'code', 'source': '#| fig-alt: "Two bars"\nfigure', 'outputs': [{'data': {'application/vnd.plotly.v1+json': figure}}]}
    done = subprocess.run([sys.executable, root / '.ci' / 'plotly_html.py'], input=json.dumps({'cells': [cell]}), capture_output=True, text=True,
                          check=True)
    (tmp_path / 'page.html').write_text(json.loads(done.stdout)['cells'][0]['outputs'][0]['data']['text/html'], encoding='utf-8')
    page = browser.new_page()
    page.goto((tmp_path / 'page.html').as_uri())
    page.wait_for_selector('[aria-label="Two bars"] .bars .point', timeout=10_000)
    page.close()
