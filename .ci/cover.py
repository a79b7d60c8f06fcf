"""Which lines of the package the notebooks run, when they run as tests: `python .ci/cover.py`.

nbdev_test runs the exported cells of a notebook in the notebook, not in the module that is made of them. Here each such cell is compiled
under the name and at the lines of its module, so that a line counts wherever it ran: in its own notebook, from another one, in a worker
or in the command in a shell. Functions that numba compiles run outside of Python, where no line is seen: they are left out.

Writes nbs/results/coverage.json when all notebooks ran; `--notebooks '1*' '2*'` takes some only, `--into DIR` keeps what was counted for
the next call with the others; `--missing` lists the lines.
"""
import argparse
import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parent.parent
package = root / 'kwspot'
config = """[run]
source = {package}
parallel = true
data_file = {folder}/data
patch = subprocess
sigterm = true
disable_warnings = no-data-collected, module-not-measured, module-not-imported
[report]
exclude_also =
    raise NotImplementedError
    if __name__ == .__main__.
    ^@(_jit|_fast|_in_order|compiled)
    ^\\s+@compiled
"""


def cells_of(module: Path) -> dict[str, int]:
    "The text of each exported cell and the line of the module where it begins, less one."
    lines, found, start = module.read_text(encoding='utf-8').splitlines(), {}, None
    for number, line in enumerate([*lines, '# %%']):
        if not line.startswith('# %%'): continue
        if start is not None: found['\n'.join(lines[start:number]).strip()] = start
        start = number + 1
    return found


def run_one(notebook: Path) -> int:
    "Test a notebook in this process, its exported cells compiled as parts of their modules."
    from IPython.core.interactiveshell import InteractiveShell
    from nbdev.test import test_nb
    name = re.search(r'^#\|\s*default_exp\s+(\w+)', '\n'.join(sources(notebook)), re.M)
    module = package / f'{name[1]}.py' if name else None
    known, current = cells_of(module) if module else {}, ['', 0]
    run_cell, run_nodes = InteractiveShell.run_cell_async, InteractiveShell.run_ast_nodes

    async def run_cell_async(self, raw_cell, *rest, **options):
        lines = raw_cell.splitlines()
        n_before = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith('#|')), 0)
        current[:] = '\n'.join(lines[n_before:]).strip(), n_before
        return await run_cell(self, raw_cell, *rest, **options)

    async def run_ast_nodes(self, nodes, cell_name, *rest, **options):
        text, n_before = current
        if text in known:
            for node in nodes: ast.increment_lineno(node, known[text] - n_before)
            cell_name = str(module)
        return await run_nodes(self, nodes, cell_name, *rest, **options)

    InteractiveShell.run_cell_async, InteractiveShell.run_ast_nodes = run_cell_async, run_ast_nodes
    passed, _ = test_nb(notebook, skip_flags=['slow', 'data'], basepath=root)
    if module: importlib.import_module(f'kwspot.{module.stem}')  # its imports are not among the cells: they are rewritten
    return int(not passed)


def sources(notebook: Path) -> list[str]:
    "The code cells."
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']


def figures(folder: Path) -> dict[str, dict]:
    "Statements, covered ones and missing lines of each module."
    subprocess.run([sys.executable, '-m', 'coverage', 'combine', '-q', '--append', '--rcfile', folder / 'rc'], cwd=root, check=False)
    subprocess.run([sys.executable, '-m', 'coverage', 'json', '-q', '--rcfile', folder / 'rc', '-o', folder / 'out.json'], cwd=root, check=True)
    found = json.loads((folder / 'out.json').read_text(encoding='utf-8'))['files']
    return {Path(name).stem: dict(statements=one['summary']['num_statements'], covered=one['summary']['covered_lines'],
                                  missing=one['missing_lines']) for name, one in found.items() if Path(name).stem not in ('_modidx', '__init__')}


def main() -> int:
    "Run the notebooks, two at a time, and report."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--notebooks', nargs='*', default=[])
    parser.add_argument('--missing', action='store_true')
    parser.add_argument('--into', type=Path)
    parser.add_argument('--one', type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one: return run_one(given.one)
    chosen = sorted({path for pattern in given.notebooks or ['*'] for path in (root / 'nbs').glob(f'{pattern}.ipynb')})
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.into or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'rc').write_text(config.format(folder=folder, package=package), encoding='utf-8')
        chosen = [path for path in chosen if not (folder / f'{path.stem}.done').exists()]
        def go(path):
            command = [sys.executable, '-m', 'coverage', 'run', f'--rcfile={folder / "rc"}', __file__, '--one', str(path)]
            done = subprocess.run(command, cwd=root / 'nbs', capture_output=True, text=True, check=False,
                                  env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', 'COVERAGE_CORE': 'ctrace'})
            if done.returncode: print(f'{path.name} failed\n{done.stderr[-2000:]}', file=sys.stderr)
            else: (folder / f'{path.stem}.done').touch()
            return done.returncode
        with ThreadPoolExecutor(os.cpu_count()) as pool: failed = sum(pool.map(go, chosen))
        found, n_done = figures(folder), len(list(folder.glob('*.done')))
    for name, one in sorted(found.items(), key=lambda item: item[1]['covered'] / max(item[1]['statements'], 1)):
        print(f"{name:20} {one['statements']:5} lines {one['covered'] / max(one['statements'], 1):7.1%}", *([one['missing']] if given.missing else []))
    total, covered = (sum(one[key] for one in found.values()) for key in ('statements', 'covered'))
    print(f'{"all":20} {total:5} lines {covered / total:7.1%}')
    if n_done == len(list((root / 'nbs').glob('*.ipynb'))):
        kept = {name: {key: one[key] for key in ('statements', 'covered')} for name, one in sorted(found.items())}
        facts = dict(covered=covered, statements=total, modules=kept)
        path = root / 'nbs' / 'results' / 'coverage.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(facts, indent=1) + '\n', encoding='utf-8')
    return int(failed > 0)


if __name__ == '__main__': sys.exit(main())
