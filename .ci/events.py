"""Words missed at one false accept per hour: `python .ci/events.py RUN CORPUS|PACKED nbs/results/events-stream.json [MODEL] [--gap 4 14]`.

Recordings of all clips of the validation and of the test speakers, each once, over six kinds of noise made anew, 5 to 20 dB. The threshold of
each choice of words is chosen on the validation speakers and judged on the test speakers. MODEL: a file in the run's folder export/ to listen
with; without it what `kwspot stream RUN` would take. --gap: shortest and longest time between words, s.
"""
import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from kwspot import preprocessing, streaming, synth, training
from kwspot.corpus import to_int16
from kwspot.recordings import make_recording, match_events, per_hour

CHOICES = ('marvin,sheila', 'seven,marvin,sheila,happy', 'yes,stop,left,right', 'yes,no,up,down',
           'yes,no,up,down,left,right,on,off,stop,go', 'all')
GRID = streaming.THRESHOLDS
SEEDS = {'valid': (1,), 'test': (2,)} # one for each turn through the clips
PART_S = 4500. # about so long is a part
USUAL_GAP = (0.5, 3.) # s
COMMAND = 'python .ci/events.py RUN CORPUS nbs/results/{} {}'


def recordings(packed, split, gap_s=USUAL_GAP):
    "Audio and truth with its speakers, part by part."
    for seed in SEEDS[split]:
        makers = enumerate(synth.NOISES.values())
        noises = [to_int16(0.05 * make(60 * 16000, np.random.default_rng([1000 + seed, i])) * 32767) for i, make in makers]
        rows = np.random.default_rng(seed).permutation(packed.select(split=split))
        n_parts = round(len(rows) * (1 + sum(gap_s) / 2) / PART_S)
        for i, part in enumerate(np.array_split(rows, n_parts)):
            clips = packed.clips.iloc[part]
            audio, truth = make_recording(packed.read(part), clips['word'].to_numpy(), noises=noises, gap_s=gap_s, seed=100 * seed + i)
            yield audio, truth.assign(speaker=clips['speaker'].to_numpy())


def decide(listener, parts, words, threshold):
    "Words with `heard`, false accepts and hours, over all parts."
    decision = streaming.decision_for(listener.labels, words=words)
    decision = dataclasses.replace(decision, threshold=threshold, release=threshold / 2)
    said, n_false, delays = [], 0, []
    for answers, truth, _ in parts:
        events = streaming.judged(listener, answers, decision)[1]
        wanted = truth[truth['word'].isin(words)]
        heard, taken = match_events(events, wanted)
        said.append(wanted.assign(heard=heard >= 0))
        n_false += int((taken < 0).sum())
        delays += [events[number].time_s - end for number, end in zip(heard, wanted['end_s']) if number >= 0]
    return pd.concat(said), n_false, float(np.median(delays)) if delays else None


def interval(said, n_boot=2000):
    "Miss rate and its 95 % interval by bootstrap over speakers."
    counts = said.groupby('speaker')['heard'].agg(['sum', 'count']).to_numpy(float)
    drawn = np.random.default_rng(0).integers(len(counts), size=(n_boot, len(counts)))
    rates = 1 - counts[drawn, 0].sum(axis=1) / counts[drawn, 1].sum(axis=1)
    return {'n_words': len(said), 'miss_rate': float(1 - said['heard'].mean()),
            'ci95': np.percentile(rates, [2.5, 97.5]).tolist()}


def judge(listener, parts, words):
    "The line of one choice of words."
    hours = {split: sum(seconds for _, _, seconds in parts[split]) / 3600 for split in parts}
    decision = streaming.decision_for(listener.labels, words=words)
    tables = [streaming.points_of(listener, answers, truth, thresholds=GRID, decision=decision, duration_s=seconds)
              for answers, truth, seconds in parts['valid']]
    points = streaming.pooled_points(tables)
    threshold = streaming.choose_threshold(points, false_accepts_per_hour=1)
    said, n_false, delay = decide(listener, parts['test'], words, threshold)
    rate, ci95 = per_hour(n_false, hours['test'])
    bins = {f'{low} to {low + 5} dB': interval(said[said['snr_db'].between(low, low + 5)]) for low in (5, 10, 15)}
    return {'words': words, 'threshold': threshold, 'hours': hours, 'valid_miss_rate': float(points.loc[threshold, 'miss_rate']),
            'valid_false_accepts': int(points.loc[threshold, 'false_accepts']), '5 to 20 dB': interval(said), **bins,
            'false_accepts': n_false, 'false_accepts_per_hour': rate, 'false_accepts_per_hour_ci95': ci95, 'median_delay_s': delay,
            'n_speakers': int(said['speaker'].nunique())}


def rounded(value):
    "Six digits are enough for a page."
    if isinstance(value, float): return float(f'{value:.6g}')
    if isinstance(value, dict): return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def write(run, listener, lines, out, file, gap_s):
    "The result file: what the run is, and its lines."
    info = training.read_info(run)
    known = {name: info[name] for name in ('model', 'parameters', 'metrics')}
    corpus = {name: value for name, value in info['corpus'].items() if name != 'packed'}
    title = 'the same in 8 bits' if 'int8' in file else 'thirty words, streamed' if gap_s == USUAL_GAP else 'the same, spoken less often'
    command = COMMAND.format(out.name, file).strip() + ('' if gap_s == USUAL_GAP else ' --gap {:g} {:g}'.format(*gap_s))
    facts = {'title': title, **known, 'network': info['recipe']['network'], 'recipe': info['recipe']['name'],
             'epochs': info['epochs_done'], 'corpus': corpus, 'steps': dict(getattr(listener, 'facts', {})),
             'hop_ms': listener.hop_ms, 'seeds': SEEDS, 'gap_s': gap_s, 'command': command, 'choices': lines}
    training.write_json(out, rounded(facts))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ('run', 'corpus', 'out'): parser.add_argument(name, type=Path)
    parser.add_argument('model', nargs='?', default='')
    parser.add_argument('--gap', type=float, nargs=2, default=USUAL_GAP)
    asked = parser.parse_args()
    packed = preprocessing.open_pack(asked.corpus) if (asked.corpus / 'clips.parquet').is_file() else training.packed_corpus(asked.corpus)
    listener = streaming.open_listener(asked.run / 'export' / asked.model if asked.model else asked.run)
    parts = {split: [(streaming.follow(listener, audio), truth, len(audio) / 16000)
                     for audio, truth in recordings(packed, split, tuple(asked.gap))] for split in SEEDS}
    known = [label for label in listener.labels if label not in streaming.Decision.ignored]
    choices = [known if words == 'all' else words.split(',') for words in CHOICES]
    write(asked.run, listener, [judge(listener, parts, words) for words in choices], asked.out, asked.model, tuple(asked.gap))
