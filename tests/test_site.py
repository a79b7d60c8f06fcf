"""The documentation site as nbdev stages it: complete, no broken internal link, nothing on a page that a reader should not see."""
import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
local_path = re.compile(r'/(home|root|Users|tmp)/|(?<![\w.:/~-])/(work|var|private|opt|mnt|media|srv|content)/|[A-Z]:\\\\+Users')
stage_script = "from nbdev.serve import proc_nbs\nif __name__ == '__main__': print(proc_nbs(force=True))\n"


@pytest.fixture(scope='module')
def staged(tmp_path_factory) -> Path:
    "The folder that nbdev stages for Quarto."
    script = tmp_path_factory.mktemp('stage') / 'stage.py'
    script.write_text(stage_script, encoding='utf-8')
    done = subprocess.run([sys.executable, script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.split()[-1])


def cells(folder: Path):
    "(notebook, cell) of every notebook in a folder."
    for path in sorted(folder.glob('*.ipynb')):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']: yield path, cell


def outputs(folder: Path):
    "(notebook, text of one output) of every notebook in a folder."
    for path, cell in cells(folder):
        for output in cell.get('outputs', []): yield path, output


def test_configuration_is_staged(staged):
    assert (staged / '_quarto.yml').read_bytes() == (root / '_quarto.yml').read_bytes()
    assert (root / 'nbs/_quarto.yml').is_symlink()


def test_every_notebook_is_staged_and_in_the_sidebar(staged):
    names = {path.name for path in (root / 'nbs').glob('*.ipynb')}
    assert names == {path.name for path in staged.glob('*.ipynb')}
    assert names == set(re.findall(r'[\w-]+\.ipynb', (root / '_quarto.yml').read_text(encoding='utf-8')))


def headings(path: Path) -> set[str]:
    "The anchors of a notebook's headings, as Quarto makes them."
    text = '\n'.join(''.join(cell['source']) for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'markdown')
    titles = re.findall(r'^#+ (.*)$', text, re.M)
    return {re.sub(r'\s+', '-', re.sub(r'[^\w\s-]', '', title.lower()).strip()) for title in titles}


def definitions(path: Path) -> set[str]:
    "The anchors of the documented names of a notebook."
    text = '\n'.join(''.join(cell['source']) for cell in json.loads(path.read_text(encoding='utf-8'))['cells'])
    return {name.lower() for name in re.findall(r'^(?:def|class) (\w+)', text, re.M)}


def test_internal_links_resolve(staged):
    broken = []
    for path, cell in cells(staged):
        if cell['cell_type'] != 'markdown': continue
        for target in re.findall(r'\]\(([^)\s]+)\)', re.sub(r'`[^`]*`', '', ''.join(cell['source']))):
            if re.match(r'(https?:|mailto:|data:)', target): continue
            name, _, anchor = target.partition('#')
            file = staged / (name or path.name)
            if file.suffix == '.html': file = file.with_suffix('.ipynb')  # nbdev's links from names to their definitions
            if not file.is_file(): broken.append(f'{path.name}: {target}')
            elif anchor and file.suffix == '.ipynb' and anchor not in headings(file) | definitions(root / 'nbs' / file.name):
                broken.append(f'{path.name}: {target}')
    assert not broken, broken


def test_pictures_have_alternative_texts(staged):
    missing = [f'{path.name}: {target}' for path, cell in cells(staged) if cell['cell_type'] == 'markdown'
               for alt, target in re.findall(r'!\[([^\]]*)\]\(([^)]+)\)', ''.join(cell['source'])) if not alt.strip()]
    assert not missing, missing


def draws(cell: dict) -> bool:
    "Whether the stored outputs of a cell hold a picture or a Plotly figure."
    kinds = {kind for output in cell.get('outputs', []) for kind in output.get('data', {})}
    return any(kind.startswith('image/') or 'plotly' in kind for kind in kinds)


def test_figures_have_alternative_texts():
    missing = [f"{path.name}: {''.join(cell['source'])[:80]}" for path, cell in cells(root / 'nbs')
               if draws(cell) and not re.search(r'^#\| fig-alt: "[^"]{10,}"$', ''.join(cell['source']), re.M)]
    assert not missing, missing


def test_plotly_figures_get_an_html_form_with_their_words():
    spec = importlib.util.spec_from_file_location('plotly_html', root / '.ci' / 'plotly_html.py')
    filtering = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(filtering)
    drawn = 0
    for path in sorted((root / 'nbs').glob('*.ipynb')):
        page = filtering.with_html(json.loads(path.read_text(encoding='utf-8')))
        data = [output.get('data', {}) for cell in page['cells'] for output in cell.get('outputs', [])]
        assert not [kind for kinds in data for kind in kinds if 'plotly' in kind], path.name
        figures = [kinds['text/html'] for kinds in data if 'Plotly.newPlot' in kinds.get('text/html', '')]
        assert sum('src="plotly.min.js"' in figure for figure in figures) == bool(figures), path.name
        assert not [figure for figure in figures if 'aria-label="a figure"' in figure], path.name
        drawn += len(figures)
    assert drawn > 5


def test_stored_outputs_ask_no_other_server():
    asking = [path.name for path, output in outputs(root / 'nbs') for kind, content in output.get('data', {}).items()
              if kind == 'text/html' and re.search(r'(src|href)=\\?["\'](https?:)?//', ''.join(content))]
    assert not asking, asking


def test_pages_hold_no_leftovers():
    found = []
    for path, cell in cells(root / 'nbs'):
        source = ''.join(cell['source'])
        if re.search(r'\b(TODO|FIXME|XXX)\b', source): found.append(f'{path.name}: a leftover note')
    for path, output in outputs(root / 'nbs'):
        text = json.dumps({key: value for key, value in output.items() if key != 'data'}) + json.dumps(
            {kind: value for kind, value in output.get('data', {}).items() if not kind.startswith(('image/', 'audio/'))})
        if output['output_type'] == 'error': found.append(f'{path.name}: an error')
        if output.get('name') == 'stderr': found.append(f'{path.name}: {"".join(output["text"])[:100]}')
        shown = re.sub(r'base64,[\w+/=]+', '', text)
        if re.search(r'\w+Warning: ', shown): found.append(f'{path.name}: a warning')
        if local_path.search(shown): found.append(f'{path.name}: a path of one machine')
    assert not found, found


@pytest.mark.parametrize('text', ['/home/ann/kwspot', '"/tmp/tmp1/x.wav"', "PosixPath('/work/clone')", 'in /var/folders/x', 'C:\\\\Users\\\\ann'])
def test_a_path_of_one_machine_is_noticed(text):
    assert local_path.search(text) and not local_path.search('s3://bucket/a.tar::/yes/a.wav, ../shared/data, https://site/work/')


def links(path: Path) -> set[str]:
    "The notebooks that a notebook links to."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')
    return set(re.findall(r'\]\(([\w-]+\.ipynb)(?:#[\w-]+)?\)', text))


def test_every_notebook_is_reached_from_the_index_and_leads_on():
    reached, waiting = set(), {'index.ipynb'}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= links(root / 'nbs' / name) - reached
    assert reached == {path.name for path in (root / 'nbs').glob('*.ipynb')}
    last = {path.name: [''.join(cell['source']) for at, cell in cells(path.parent) if at == path and cell['cell_type'] == 'markdown'][-1]
            for path in (root / 'nbs').glob('*.ipynb')}
    assert not [name for name, text in last.items() if not re.search(r'## What to read next\n.*\.ipynb', text, re.S)]


def test_stored_outputs_need_no_kernel_and_are_small():
    alive = {path.name for path, output in outputs(root / 'nbs') if any('widget-view' in kind for kind in output.get('data', {}))}
    for path in (root / 'nbs').glob('*.ipynb'):
        if set(json.loads(path.read_text(encoding='utf-8'))['metadata']) - {'kernelspec'}: alive.add(path.name)
    assert not alive, f'{alive}: stored with living widgets or their state; run by `python .ci/execute.py` before committing'
    large = {path.name: path.stat().st_size for path in (root / 'nbs').glob('*.ipynb') if path.stat().st_size > 400_000}
    assert not large, large


def test_long_cells_are_stored_as_they_ran():
    skipped = [f"{path.name}: {''.join(cell['source'])[:80]}" for path, cell in cells(root / 'nbs')
               if re.search(r'^#\|\s*(slow|data)\b', ''.join(cell['source']), re.M)
               and any(''.join(output.get('text', '')).startswith('skipped') for output in cell['outputs'])]
    assert not skipped, f'{skipped}: run them with KWSPOT_DATA and KWSPOT_SLOW set, or keep what was stored by `.ci/execute.py --keep`'


def test_result_files_hold_no_path_of_one_machine():
    for path in (root / 'nbs' / 'results').glob('*.json'):
        assert not local_path.search(path.read_text(encoding='utf-8')), path.name


def test_every_result_file_is_on_the_page_of_results():
    source = '\n'.join(''.join(cell['source']) for path, cell in cells(root / 'nbs') if path.stem == 'results')
    shown = set(re.findall(r"(?:read|named)\('(\w+)'\)", source))
    assert not {path.name for path in (root / 'nbs' / 'results').glob('*.json') if path.stem.partition('-')[0] not in shown}


def imported(source: str) -> set[str]:
    "The modules of kwspot that a cell imports at its top level."
    names = set()
    for node in ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.M)).body:
        if isinstance(node, ast.ImportFrom) and node.module == 'kwspot': names |= {f'kwspot.{alias.name}' for alias in node.names}
        elif isinstance(node, ast.ImportFrom): names.add(f'{node.module}')
        elif isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
    return {name.removeprefix('kwspot.') for name in names if name.startswith('kwspot.')}


def test_pages_show_what_the_result_files_say():
    def found(kind): return [json.loads(path.read_text(encoding='utf-8')) for path in (root / 'nbs' / 'results').glob(f'{kind}*.json')]
    accuracies = [f"{run['scores']['accuracy']:.2%}" for run in found('accuracy-')]
    speeds = [f"{race['kwspot']:,}" for bench in found('bench') for race in bench['races']]
    missed = [f"{100 * line['5 to 20 dB']['miss_rate']:.1f}" for run in found('events-') for line in run['choices']]
    for page, figures in {'results': accuracies + speeds + missed, '75_benchmark': speeds, '70_streaming': missed}.items():
        assert figures
        shown = json.dumps([output.get('data', {}) for path, output in outputs(root / 'nbs') if path.stem == page])
        absent = [figure for figure in figures if figure not in shown]
        assert not absent, f'{page}.ipynb does not show {absent}: run it again with `python .ci/execute.py --keep`'


def test_notebooks_import_only_lower_numbers():
    module_number = {}
    for path, cell in cells(root / 'nbs'):
        found = re.search(r'^#\|\s*default_exp\s+(\w+)', ''.join(cell['source']), re.M)
        if found: module_number[found[1]] = int(path.name[:2])
    wrong = []
    for path, cell in cells(root / 'nbs'):
        if cell['cell_type'] != 'code' or not path.name[:2].isdigit(): continue
        for name in imported(''.join(cell['source'])):
            if module_number.get(name, -1) > int(path.name[:2]): wrong.append(f'{path.name}: {name}')
    assert not wrong, wrong
