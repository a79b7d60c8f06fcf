"""Make the weights that trainings may begin with: python .ci/starts.py WORK [MODEL ...]

WORK is a folder for the corpora, made once, and for the runs, which go on where they were stopped: the embedded corpus in its largest form
(64,721 clips by 2,500 speakers, 2 GB) and, for kwspot-s, the training speakers of a second one beside it (4 GB). The finished runs are copied to
kwspot/starts without their checkpoints. On two cores a quarter of an hour for each corpus, ten minutes for kwspot-l and an hour for
kwspot-s; what is shipped of kwspot-s was trained on a GPU, where that took four minutes.
"""
import argparse
import dataclasses
import json
import os
import shutil
from pathlib import Path

WIDE = {'schedule': 'cosine', 'batch_size': 512, 'ema': 0.995}
HOW = {'kwspot-l': ('corpus', {'epochs': 10}, 10), # corpus, changes to the recipe, after how many epochs it ends
       'kwspot-s': ('wide', {'epochs': 40, **WIDE}, 16)} # cut off while the rate falls: no later epoch was ever run


class Enough(Exception):
    "So many epochs are done."


def spoken(work, name):
    "The corpus of that name, made if it is not there. Its validation and test speakers are those of the smaller ones, and stay unheard."
    from kwspot import corpus, synth
    folder, more = work / name, work / 'more'
    if folder.is_dir(): return folder
    if name == 'corpus':
        synth.make_corpus(folder, counts='v0.01')
        return folder
    if not more.is_dir(): synth.make_corpus(more, n_clips=64_000, n_speakers=2_700, seed=1)
    with corpus.atomic_folder(folder) as part:
        shutil.copytree(spoken(work, 'corpus'), part, copy_function=os.link, dirs_exist_ok=True)
        for clip in more.glob('[a-z]*/*.wav'):
            if corpus.which_set(clip.name) == 'train': os.link(clip, part / clip.relative_to(more))
    return folder


def taught(folder, run, model, changes, n_epochs):
    "The run: as `best` trains, but without teachers and from nothing; of one that is cut off, the best epoch so far."
    from kwspot import synth, training
    recipe = training.choose_recipe('best', name='start', model=model, teachers=0, label_smoothing=0.1, start='none', **changes)
    def watch(line):
        training.say_epoch(line, recipe.epochs)
        if line['epoch'] == n_epochs < recipe.epochs: raise Enough
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
    parser.add_argument('models', nargs='*', default=list(HOW))
    asked = parser.parse_args()
    for model in asked.models:
        name, changes, n_epochs = HOW[model]
        run = taught(spoken(asked.work, name), asked.work / model, model, changes, n_epochs)
        ship(run, Path(__file__).resolve().parents[1] / 'kwspot' / 'starts' / model)
        print(model, run.info['metrics'])
