"""Quarto filter: Plotly figures that are stored as JSON get an HTML form, which the site's own plotly.min.js draws without a network.

Quarto hands the notebook over on stdin and takes it back from stdout (`ipynb-filters` in _quarto.yml). `python .ci/site.py` puts the
plotly.min.js of the installed Plotly beside the pages.
"""
import json
import sys

KIND = 'application/vnd.plotly.v1+json'


def as_html(figure: dict, number: int, alt: str) -> str:
    "A figure as a box and the call that fills it."
    data, layout = (json.dumps(figure.get(part, default)).replace('</', '<\\/') for part, default in (('data', []), ('layout', {})))
    label = alt.replace('&', '&amp;').replace('"', '&quot;')
    return (f'<div id="plotly-{number}" class="plotly-figure" role="img" aria-label="{label}"></div>\n'
            f'<script>Plotly.newPlot("plotly-{number}", {data}, {layout}, {{"responsive": true}})</script>')


def alt_text(cell: dict) -> str:
    "The text of the cell's fig-alt, or the title of its figure."
    lines = [line.partition(':')[2].strip().strip('"') for line in ''.join(cell['source']).splitlines() if line.startswith('#| fig-alt:')]
    return lines[0] if lines else 'a figure'


def with_html(notebook: dict) -> dict:
    "The same notebook, its Plotly figures as HTML; the first brings plotly.js."
    number = 0
    for cell in notebook['cells']:
        for output in cell.get('outputs', []):
            if KIND not in output.get('data', {}): continue
            figure = output['data'].pop(KIND)
            loader = '' if number else '<script src="plotly.min.js"></script>\n'
            output['data']['text/html'] = loader + as_html(figure, number, alt_text(cell))
            number += 1
    return notebook


if __name__ == '__main__': json.dump(with_html(json.load(sys.stdin)), sys.stdout)
