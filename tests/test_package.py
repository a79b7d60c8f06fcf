"""The package outside its notebooks: light to import, whole in a wheel, and documented."""
import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
modules = sorted(path for path in (root / 'kwspot').glob('*.py') if path.name not in ('_modidx.py', '__init__.py'))


def imported_by(statement: str) -> set[str]:
    "The top-level modules that a fresh interpreter holds after a statement."
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=root)
    return set(done.stdout.split())


def test_import_is_light():
    heavy = {'tensorflow', 'keras', 'pandas', 'numpy', 'scipy', 'librosa', 'numba', 'matplotlib', 'plotly', 'IPython', 'nbdev', 'fastcore'}
    assert not imported_by('import kwspot') & heavy
    assert not imported_by('import kwspot.cli') & heavy


@pytest.mark.parametrize('name', ['corpus', 'synth', 'exploration', 'anomaly', 'features', 'preprocessing', 'export'])
def test_modules_that_leave_tensorflow_alone(name):
    assert not imported_by(f'import kwspot.{name}') & {'tensorflow', 'keras', 'IPython', 'nbdev', 'fastcore'}


def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'build', '--wheel', '--outdir', tmp_path, root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    names = zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist()
    assert {name.split('/')[0] for name in names if '.dist-info' not in name} == {'kwspot'}
    assert {f'kwspot/{path.name}' for path in modules} <= set(names)


@pytest.mark.parametrize('path', modules, ids=lambda path: path.stem)
def test_public_functions_are_documented(path):
    lines = path.read_text(encoding='utf-8').splitlines()
    tree = ast.parse('\n'.join(lines))
    public = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == '__all__')
    missing = []
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public: continue
        if not ast.get_docstring(node): missing.append(f'{node.name}: no docstring')
        if isinstance(node, ast.ClassDef): continue
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        body_line = node.body[0].lineno
        for argument in arguments:
            following = [other.lineno for other in arguments if other.lineno > argument.lineno]
            text = '\n'.join(lines[argument.lineno - 1:min([body_line - 1, *(line - 1 for line in following)])])
            if '#' not in text: missing.append(f'{node.name}({argument.arg}): no comment')
            if argument.annotation is None: missing.append(f'{node.name}({argument.arg}): no type')
    assert not missing, missing


@pytest.mark.parametrize('path', sorted((root / 'nbs').glob('*.ipynb')), ids=lambda path: path.stem)
def test_code_cells_fit_a_page(path):
    "JupyterLab cuts what is longer than 116 characters, and a cell of more than 45 lines is more than one idea."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    assert all(''.join(cell['source']).strip() for cell in cells), 'an empty cell'
    sources = [''.join(cell['source']).splitlines() for cell in cells if cell['cell_type'] == 'code']
    assert not [line for lines in sources for line in lines if len(line) > 116]
    assert not [lines[:3] for lines in sources if len(lines) > 45]
