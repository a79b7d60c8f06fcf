"""Run notebooks from top to bottom, store what they say and clean them: `python .ci/execute.py nbs/10_exploration.ipynb ...`.

As `jupyter execute --inplace` and `nbdev_clean`, but the state of widgets, which is large and of no use without a kernel, is not stored, the
figures of Matplotlib keep so few colours that they take half of the bytes, and the tables that pandas styles are numbered, where it draws a
name for each at every execution: what has not changed stays the same to the byte. `--keep` leaves the cells flagged `slow` or `data` as they
are stored; `--seconds` says how long the others took, the longest last.
"""
import argparse
import base64
import io
import os
import re
import subprocess
import sys
from datetime import datetime
from itertools import count
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

long_cell = re.compile(r'^#\|\s*(slow|data)\b', re.M)
table_name = re.compile(r'<table id="(T_[0-9a-f]{5})"')
skipped = 'skip-execution'  # the tag of a cell that nbclient leaves alone


def execute(path: Path, *, keep: bool = False, seconds: bool = False) -> None:
    "Run a notebook in its folder and write it back."
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if keep and long_cell.search(cell.source): cell.metadata.tags = [skipped]
    client = NotebookClient(notebook, timeout=1800, kernel_name='python3', store_widget_state=False, skip_cells_with_tag=skipped,
                            resources={'metadata': {'path': str(path.parent)}})
    try: client.execute()
    except CellExecutionError as error: sys.exit(f'{path.name}: {error}')
    if seconds: tell_seconds(notebook)
    number_tables(notebook)
    for cell in notebook.cells:
        if skipped not in cell.metadata.get('tags', ()): shrink_figures(cell)
    notebook.metadata = {'kernelspec': notebook.metadata['kernelspec']}
    part = path.with_suffix('.part')
    nbformat.write(notebook, part)
    os.replace(part, path)
    subprocess.run(['nbdev_clean', '--fname', path], check=True)


def number_tables(notebook: nbformat.NotebookNode) -> None:
    "Name the tables that pandas has styled by their order."
    numbers = count()
    for output in (output for cell in notebook.cells for output in cell.get('outputs', [])):
        page = output.get('data', {}).get('text/html', '')
        names = {name: f'T_{next(numbers):05x}' for name in table_name.findall(page)}
        if names: output.data['text/html'] = re.sub('|'.join(names), lambda found, names=names: names[found[0]], page)


def shrink_figures(cell: nbformat.NotebookNode) -> None:
    "Store the figures of Matplotlib in few colours, none of them far from what was drawn, however little of it there is."
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        if 'image/png' not in data or not data.get('text/plain', '').startswith('<Figure'): continue
        figure, small = Image.open(io.BytesIO(base64.b64decode(data['image/png']))).convert('RGB'), io.BytesIO()
        figure.quantize(160, Image.Quantize.MAXCOVERAGE).save(small, 'png', optimize=True)
        data['image/png'] = base64.b64encode(small.getvalue()).decode('ascii')


def tell_seconds(notebook: nbformat.NotebookNode) -> None:
    "How long each cell took that took a tenth of a second, and the first line of it that is no directive."
    took = []
    for cell in notebook.cells:
        times = cell.metadata.get('execution', {})
        if 'shell.execute_reply' not in times: continue
        begin, end = (datetime.fromisoformat(times[name]) for name in ('iopub.execute_input', 'shell.execute_reply'))
        line = next((line for line in cell.source.splitlines() if line.strip() and not line.startswith('#|')), '')
        took.append(((end - begin).total_seconds(), line[:100]))
    for time, line in sorted(took):
        if time >= 0.1: print(f'{time:7.1f} s  {line}')
    print(f'{sum(time for time, _ in took):7.1f} s  in all')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('notebooks', nargs='+', type=Path)
    parser.add_argument('--keep', action='store_true', help='leave the cells flagged slow or data as they are stored')
    parser.add_argument('--seconds', action='store_true', help='say how long the cells took')
    given = parser.parse_args()
    for path in given.notebooks: execute(path.resolve(), keep=given.keep, seconds=given.seconds)
