"""Run notebooks from top to bottom, store what they say and clean them: `python .ci/execute.py nbs/10_exploration.ipynb ...`.

As `jupyter execute --inplace` and `nbdev_clean`, but the state of widgets, which is large and of no use without a kernel, is not stored.
"""
import os
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def execute(path: Path) -> None:
    "Run a notebook in its folder and write it back."
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=1800, kernel_name='python3', store_widget_state=False,
                            resources={'metadata': {'path': str(path.parent)}})
    try: client.execute()
    except CellExecutionError as error: sys.exit(f'{path.name}: {error}')
    notebook.metadata = {'kernelspec': notebook.metadata['kernelspec']}
    part = path.with_suffix('.part')
    nbformat.write(notebook, part)
    os.replace(part, path)
    subprocess.run(['nbdev_clean', '--fname', path], check=True)


if __name__ == '__main__':
    for name in sys.argv[1:]: execute(Path(name).resolve())
