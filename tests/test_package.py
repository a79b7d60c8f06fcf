"""The package outside its notebooks: light to import, whole in a wheel, and documented."""
import ast
import itertools
import json
import os
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


@pytest.mark.parametrize('name', ['corpus', 'synth', 'exploration', 'anomaly', 'features', 'preprocessing', 'clip', 'modelfile', 'formats', 'exported',
                                  'export'])
def test_modules_that_leave_tensorflow_alone(name):
    assert not imported_by(f'import kwspot.{name}') & {'tensorflow', 'keras', 'IPython', 'nbdev', 'fastcore'}


def test_opening_a_model_leaves_pandas_and_scipy_alone():
    assert not imported_by('import kwspot.clip, kwspot.exported, kwspot.export') & {'pandas', 'scipy', 'numba', 'matplotlib', 'librosa'}


def test_names_that_scripts_hold_stay_in_export():
    code = """from kwspot import clip, export, exported, formats, modelfile
print([name for part in (clip, exported, formats, modelfile) for name in part.__all__ if getattr(export, name, None) is not getattr(part, name)])"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == '[]'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    "The package as `pip install` would get it."
    folder = tmp_path_factory.mktemp('wheel')
    done = subprocess.run([sys.executable, '-m', 'build', '--wheel', '--outdir', folder, root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob('*.whl'))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split('/')[0] for name in names if '.dist-info' not in name} == {'kwspot'}
    assert {f'kwspot/{path.name}' for path in modules} <= set(names)
    starts = {path.relative_to(root).as_posix() for path in root.glob('kwspot/starts/*/*')}
    assert starts and starts <= set(names)


def test_wheel_installs_and_its_command_runs(wheel, tmp_path):
    command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', tmp_path, wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}  # its dependencies are those of this interpreter
    [script] = [path for path in tmp_path.glob('*/kwspot*') if path.parent.name in ('bin', 'Scripts')]
    done = subprocess.run([script, 'demo', '--help'], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and '--out' in done.stdout, done.stderr[-2000:]
    done = subprocess.run([sys.executable, '-c', 'import kwspot; print(kwspot.__file__)'], capture_output=True, text=True, check=True,
                          cwd=tmp_path, env=environment)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def lacking(function: ast.FunctionDef, lines: list[str]):
    "(parameter, what it lacks) of a function: a comment beside it, a type."
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    named = [argument for argument in named if argument.arg != 'self']
    every = named + [argument for argument in (function.args.vararg, function.args.kwarg) if argument]
    for argument in every:
        following = [other.lineno - 1 for other in every if other.lineno > argument.lineno]
        its_own = lines[argument.lineno - 1:min([function.body[0].lineno - 1, *following])]
        text = '\n'.join(itertools.takewhile(lambda line: not line.lstrip().startswith(')'), its_own))  # what follows is of the result
        if '#' not in text: yield argument.arg, 'no comment'
        if argument.annotation is None and argument in named: yield argument.arg, 'no type'


@pytest.mark.parametrize('path', [path for path in modules if path.stem != '__main__'], ids=lambda path: path.stem)
def test_public_functions_are_documented(path):
    lines = path.read_text(encoding='utf-8').splitlines()
    tree = ast.parse('\n'.join(lines))
    public = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == '__all__')
    missing = []
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public: continue
        if not ast.get_docstring(node): missing.append(f'{node.name}: no docstring')
        if isinstance(node, ast.FunctionDef):
            missing += [f'{node.name}({argument}): {what}' for argument, what in lacking(node, lines)]
            continue
        for made in (part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == '__init__'):
            missing += [f'{node.name}({argument}): {what}' for argument, what in lacking(made, lines) if what == 'no comment']
    assert not missing, missing


@pytest.fixture(scope='module')
def type_check(tmp_path_factory):
    "mypy as mypy.ini says, on the package or on other files: its answer and what it printed."
    pytest.importorskip('mypy', reason='types are checked by mypy: pip install ".[dev]"')
    cache, environment = tmp_path_factory.mktemp('types'), {**os.environ, 'MYPYPATH': str(root)}

    def check(*files):
        command = [sys.executable, '-m', 'mypy', '--config-file', root / 'mypy.ini', '--cache-dir', cache, *files]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)
        return done.returncode, done.stdout + done.stderr
    return check


def test_types_hold(type_check):
    code, said = type_check()
    assert code == 0, said


def test_a_wrong_type_is_noticed(type_check, tmp_path):
    (tmp_path / 'wrong.py').write_text("""from kwspot import corpus, features, preprocessing
corpus.read_clip(3)
preprocessing.make_task('words', corpus.index('folder')).labels.append('more')
features.log_mel('clip.wav')
""", encoding='utf-8')
    code, said = type_check(tmp_path / 'wrong.py')
    assert code == 1 and 'Found 3 errors in 1 file' in said, said


@pytest.mark.parametrize('path', sorted((root / 'nbs').glob('*.ipynb')), ids=lambda path: path.stem)
def test_code_cells_fit_a_page(path):
    "JupyterLab cuts what is much longer than 116 characters, and an exported cell of more than 50 lines is more than one idea."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    assert all(''.join(cell['source']).strip() for cell in cells), 'an empty cell'
    assert len({cell['id'] for cell in cells}) == len(cells), 'two cells of one id'
    exported = [lines for lines in (''.join(cell['source']).splitlines() for cell in cells if cell['cell_type'] == 'code')
                if '#| export' in lines]
    assert not [line for lines in exported for line in lines if len(line) > 120]
    assert not [lines[:3] for lines in exported if len(lines) > 50]
