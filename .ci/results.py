"""Write the small files of nbs/results, from which the results page reads every figure.

    python .ci/results.py accuracy NAME RUN CORPUS [--split valid] [--title TEXT]    what `kwspot evaluate --json` says, and the run's facts
    python .ci/results.py audit NAME CORPUS [--title TEXT]                           what `kwspot audit --json` says
    python .ci/results.py export NAME RUN CORPUS [--title TEXT]                      what `kwspot export --json` says of each format
    kwspot bench --json > nbs/results/bench.json
    kwspot bench CORPUS --memory --json > nbs/results/memory.json
    python .ci/cover.py                                                              coverage.json

No path of this machine gets into the files. Run the results notebook again afterwards.
"""
import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

folder = Path(__file__).resolve().parent.parent / 'nbs' / 'results'


def answer(*arguments: str) -> dict:
    "What a subcommand of kwspot prints with --json."
    done = subprocess.run([sys.executable, '-c', 'from kwspot.cli import main; main()', *arguments, '--json'], capture_output=True, text=True, check=False)
    if done.returncode: sys.exit(done.stderr.strip() or f'kwspot {arguments[0]} failed')
    return json.loads(done.stdout)


def accuracy(run: Path, corpus: Path, split: str, title: str) -> dict:
    "Scores of a run on a corpus, with what the run is."
    scores, info = answer('evaluate', str(run), str(corpus), '--split', split), json.loads((run / 'run.json').read_text(encoding='utf-8'))
    wanted = 'accuracy', 'accuracy_ci95', 'macro_f1', 'majority_baseline', 'n_clips', 'n_speakers', 'split', 'per_class'
    with open(run / 'history.csv', encoding='utf-8', newline='') as file:
        history = [float(row['valid_accuracy']) for row in csv.DictReader(file)]
    facts = {name: info.get(name) for name in ('model', 'task', 'seed', 'start', 'parameters', 'epochs_done', 'versions')}
    heard = {name: info['corpus'].get(name) for name in ('n_train', 'n_train_speakers', 'fingerprint')}
    return dict(title=title, recipe=info['recipe']['name'], teachers=info['recipe'].get('teachers', 0), **facts, corpus=heard,
                scores={name: scores[name] for name in wanted if name in scores},
                ece=scores['calibration']['ece'], valid_accuracy=[round(value, 5) for value in history])


def audit(corpus: Path, title: str) -> dict:
    "What the audit of a corpus found."
    found = answer('audit', str(corpus))
    return dict({name: value for name, value in found.items() if name not in ('folder', 'out')}, title=title)


def export(run: Path, corpus: Path, title: str) -> dict:
    "What each exported format weighs, loses and takes, without its place."
    found = answer('export', str(run), '--corpus', str(corpus), '--format', 'litert,litert-int8,c')
    wanted = 'bytes', 'accuracy', 'top1_agreement', 'max_abs_difference', 'n_clips', 'split', 'p50_ms', 'p99_ms'
    info = json.loads((run / 'run.json').read_text(encoding='utf-8'))
    return dict(title=title, recipe=info['recipe']['name'], model=info['model'], parameters=info['parameters'],
                formats={format: {name: facts[name] for name in wanted} for format, facts in found.items()})


def rounded(value):
    "Six digits are enough for a page."
    if isinstance(value, float): return float(f'{value:.6g}')
    if isinstance(value, dict): return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def write(name: str, facts: dict) -> None:
    "A result file, whole."
    folder.mkdir(exist_ok=True)
    path = folder / f'{name}.json'
    path.with_suffix('.part').write_text(json.dumps(rounded(facts), indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    os.replace(path.with_suffix('.part'), path)


def main() -> None:
    "Choose by the first argument."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest='kind', required=True)
    for kind in ('accuracy', 'audit', 'export'):
        one = kinds.add_parser(kind)
        one.add_argument('name')
        if kind != 'audit': one.add_argument('run', type=Path)
        if kind == 'accuracy': one.add_argument('--split', default='valid')
        one.add_argument('corpus', type=Path)
        one.add_argument('--title', default='')
    given = parser.parse_args()
    title = given.title or given.name
    if given.kind == 'accuracy': write(f'accuracy-{given.name}', accuracy(given.run, given.corpus, given.split, title))
    elif given.kind == 'export': write(f'export-{given.name}', export(given.run, given.corpus, title))
    else: write(f'audit-{given.name}', audit(given.corpus, title))


if __name__ == '__main__': main()
