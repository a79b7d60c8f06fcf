"""Make the weights that trainings may begin with: python .ci/starts.py WORK [MODEL ...]

WORK is a folder for the embedded corpus in its largest form (64,721 clips by 2,500 speakers, 2 GB, made once) and for the runs,
which go on where they were stopped. The finished runs are copied to kwspot/starts without their checkpoints. About a quarter
of an hour for the corpus and ten minutes for each network on two cores."""
import argparse
import dataclasses
import json
import shutil
from pathlib import Path


def spoken(folder):
    "The corpus, made if it is not there. Its validation and test speakers are those of the smaller ones, too, and stay unheard."
    from kwspot import synth
    if not folder.is_dir(): synth.make_corpus(folder, counts='v0.01')
    return folder


def taught(folder, run, model):
    "The run: as `best` trains, but without teachers and from nothing."
    from kwspot import synth, training
    recipe = training.choose_recipe('best', name='start', model=model, teachers=0, label_smoothing=0.1, start='none')
    return training.train(folder, run, task=','.join(sorted(synth.WORDS)), recipe=recipe, epochs=10, progress=60.)


def ship(run, place):
    "Copy what a start needs."
    from kwspot import training
    place.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.folder / 'model.keras', place / 'model.keras')
    info = {**run.info, 'recipe': {**dataclasses.asdict(training.Recipe()), **run.info['recipe'], 'name': 'start'},
            'corpus': {name: value for name, value in run.info['corpus'].items() if name != 'packed'}}
    (place / 'run.json').write_text(json.dumps(info, indent=1, ensure_ascii=False) + '\n', encoding='utf-8', newline='\n')


if __name__ == '__main__':  # which processes that make the corpus import as well
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work', type=Path)
    parser.add_argument('models', nargs='*', default=['kwspot-s', 'kwspot-l'])
    asked = parser.parse_args()
    corpus = spoken(asked.work / 'corpus')
    for model in asked.models:
        run = taught(corpus, asked.work / model, model)
        ship(run, Path(__file__).resolve().parents[1] / 'kwspot' / 'starts' / model)
        print(model, run.info['metrics'])
