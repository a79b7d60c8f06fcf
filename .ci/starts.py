"""Make the weights that trainings may begin with: python .ci/starts.py WORK [MODEL ...]

WORK is a folder for the corpora, made once, and for the runs, which go on where they were stopped: the embedded corpus in its largest form
(64,721 clips by 2,500 speakers, 2 GB) with the training speakers of a second one beside it (4 GB). The finished runs are copied to
kwspot/starts without their checkpoints. On two cores a quarter of an hour for each corpus and about an hour for each network; what is shipped
was trained on a GPU, where that took four minutes.
"""
import argparse
import dataclasses
import json
import os
import shutil
from pathlib import Path

MODELS = ('kwspot-l', 'kwspot-s')
CHANGES = {'schedule': 'cosine', 'batch_size': 512, 'ema': 0.995, 'epochs': 40} # to the recipe
N_EPOCHS = 16 # cut off while the rate falls: no later epoch was ever run


class Enough(Exception):
    "So many epochs are done."


def spoken(work):
    "Both corpora in one, made if it is not there. Validation and test speakers are those of the smaller ones, and stay unheard."
    from kwspot import corpus, synth
    folder, first, more = work / 'wide', work / 'corpus', work / 'more'
    if folder.is_dir(): return folder
    if not first.is_dir(): synth.make_corpus(first, counts='v0.01')
    if not more.is_dir(): synth.make_corpus(more, n_clips=64_000, n_speakers=2_700, seed=1)
    with corpus.atomic_folder(folder) as part:
        shutil.copytree(first, part, copy_function=os.link, dirs_exist_ok=True)
        for clip in more.glob('[a-z]*/*.wav'):
            if corpus.which_set(clip.name) == 'train': os.link(clip, part / clip.relative_to(more))
    return folder


def taught(folder, run, model):
    "The run: as `best` trains, but without teachers and from nothing; the best epoch until it is cut off."
    from kwspot import synth, training
    recipe = training.choose_recipe('best', name='start', model=model, teachers=0, label_smoothing=0.1, start='none', **CHANGES)
    def watch(line):
        training.say_epoch(line, recipe.epochs)
        if line['epoch'] == N_EPOCHS: raise Enough
    try: return training.train(folder, run, task=','.join(sorted(synth.WORDS)), recipe=recipe, progress=watch)
    except Enough: pass
    info = training.read_info(run)
    learner = training.new_learner(recipe, info['labels'])
    best, progress = training.load_checkpoint(run / 'checkpoint' / 'state.npz', learner)
    return training.finish(run, learner, best, progress['history'], info)


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
    parser.add_argument('models', nargs='*', default=MODELS)
    asked = parser.parse_args()
    for model in asked.models:
        run = taught(spoken(asked.work), asked.work / model, model)
        ship(run, Path(__file__).resolve().parents[1] / 'kwspot' / 'starts' / model)
        print(model, run.info['metrics'])
