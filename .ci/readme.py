"""Make README.md from nbs/index.ipynb without Quarto; --check only says whether it is up to date.

The notebook's own outputs are used, nothing is run. Pictures go to nbs/images, links become absolute so that they also work where
only the README is shown.
"""
import base64
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
site = f"{cfg['doc_host']}{cfg['doc_baseurl']}"
raw = f"{cfg['git_url'].replace('github.com', 'raw.githubusercontent.com')}/{cfg['branch']}"


def absolute_links(text: str) -> str:
    "Links to notebooks point to the site, links to pictures into the repository."
    text = re.sub(r'\]\(((?!https?://|#|images/)[\w./-]+)\.ipynb(#[\w-]+)?\)', rf']({site}/\1.html\2)', text)
    return re.sub(r'\]\((images/[\w./-]+)\)', rf']({raw}/nbs/\1)', text)


def output_text(output: dict, alt: str, pictures: dict) -> str:
    "One stored output as markdown; a picture is remembered under its file name."
    data = output.get('data', {})
    if 'image/png' in data:
        name = f'images/index_{len(pictures)}.png'
        pictures[name] = base64.b64decode(''.join(data['image/png']))
        return f'![{alt}]({name})'
    text = ''.join(output.get('text', data.get('text/markdown', data.get('text/plain', []))))
    return '\n'.join('    ' + line for line in text.rstrip().splitlines())


def readme(notebook: dict) -> tuple[str, dict]:
    "README.md's text and its pictures by file name."
    parts, pictures = [], {}
    for cell in notebook['cells']:
        source = ''.join(cell['source']).strip()
        if cell['cell_type'] == 'markdown':
            parts.append(source)
            continue
        if re.match(r'#\|\s*(hide|default_exp)', source) or not source: continue
        alt = ''.join(re.findall(r'#\|\s*fig-alt:\s*"?(.*?)"?\s*$', source, re.M)) or 'output'
        lines = [line for line in source.splitlines() if not line.startswith('#|')]
        if '#| echo: false' not in source: parts.append('\n'.join(['```python', *lines, '```']))
        parts += [output_text(output, alt, pictures) for output in cell['outputs']]
    banner = '<!-- made from nbs/index.ipynb by .ci/readme.py; edit the notebook -->'
    return absolute_links('\n\n'.join([parts[0], *parts[1:], banner])) + '\n', pictures


def main() -> int:
    "Write, or with --check compare."
    text, pictures = readme(json.loads((root / 'nbs/index.ipynb').read_text(encoding='utf-8')))
    wanted = {root / 'README.md': text.encode(), **{root / 'nbs' / name: data for name, data in pictures.items()}}
    stale = [path for path, data in wanted.items() if not path.is_file() or path.read_bytes() != data]
    if '--check' in sys.argv[1:]:
        if stale: print(f'{", ".join(path.name for path in stale)} differ from nbs/index.ipynb: run python .ci/readme.py')
        return int(bool(stale))
    for path, data in wanted.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return 0


if __name__ == '__main__': sys.exit(main())
