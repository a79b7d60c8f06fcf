"""What using a network costs, on one core of this machine: writes nbs/results/use.json.

    python .ci/use.py [--hours 10] [--rounds 5]

The networks are untrained, for what they cost does not depend on what they have learnt: kwspot's small one as a LiteRT file for clips and,
in its causal form, in steps. Measured are the time of one clip, KWT-1's beside it; `kwspot spot FILE clip.wav` from the shell, start-up included; steps of 20
and 40 ms beside windows asked anew as often (processor time, samples to events, and multiply-adds); and `kwspot stream` on a recording of
ten hours, with its memory after a tenth of the time and at its end. Linux; the machine must do nothing else.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from kwspot import bench, formats, modelling, stateful
from kwspot.export import latency, processor
from kwspot.exported import load_exported
from kwspot.streaming import Streamer, Windows, load_steps

RESULT = Path(__file__).resolve().parent.parent / 'nbs' / 'results' / 'use.json'


def one_core() -> None:
    "For this process and what it starts."
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def command(*arguments: str | Path, **how) -> subprocess.Popen:
    "kwspot as a process of its own, on one core."
    return subprocess.Popen([sys.executable, '-m', 'kwspot', *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            preexec_fn=one_core, **how)


def from_the_shell(file: Path, clip: Path, n_rounds: int) -> float:
    "Median seconds of `kwspot spot`; the first time, which reads from the disk, is left out."
    seconds = []
    for _ in range(n_rounds + 1):
        started = time.perf_counter()
        if command('spot', file, clip).wait(): sys.exit('kwspot spot failed')
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


def clip_beside_kwt(folder: Path) -> dict:
    "How long one clip takes, and how long it takes the smallest transformer: p50_ms and p99_ms of each."
    files = {name: bench.write_untrained(folder / f'{name}.tflite', name) for name in ('kwspot-s', 'kwt-1')}
    found = {name: latency(load_exported(file).run, 16000) for name, file in files.items()}
    return {'clip': found['kwspot-s'], 'clip_kwt_1': found['kwt-1']}


def resident_mb(process: subprocess.Popen) -> float:
    "What a process holds now; nan when it has ended."
    try: lines = Path(f'/proc/{process.pid}/status').read_text(encoding='ascii').splitlines()
    except OSError: return float('nan')
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith('VmRSS')), float('nan'))


def long_recording(file: Path, hours: float) -> None:
    "Noise, the same minute again and again: what is heard does not change what hearing costs."
    minute = (3000 * np.random.default_rng(0).standard_normal(60 * 16000)).clip(-32768, 32767).astype(np.int16)
    with soundfile.SoundFile(str(file), 'w', 16000, 1, 'PCM_16') as recording:
        for _ in range(round(60 * hours)): recording.write(minute)


def hours_of_stream(file: Path, recording: Path, hours: float) -> dict:
    "How fast a long recording is heard, and what the process held meanwhile."
    started, held = time.perf_counter(), []
    process = command('stream', file, recording, '--threshold', '0.99')
    while process.poll() is None:
        held.append((time.perf_counter() - started, resident_mb(process)))
        time.sleep(0.1)
    if process.returncode: sys.exit('kwspot stream failed')
    seconds, sizes = time.perf_counter() - started, np.array([size for _, size in held if size > 0])
    return {'hours': hours, 'seconds': seconds, 'times_real_time': 3600 * hours / seconds, 'mb_after_a_tenth': sizes[len(sizes) // 10],
            'mb_at_the_end': sizes[-2], 'mb_at_most': sizes.max()}


def steps_beside_windows(folder: Path, hop_ms: int, n_rounds: int) -> dict:
    "Steps of a causal network and windows of it as often: share of a core, and multiply-adds a second."
    facts = {'labels': [f'word {number}' for number in range(12)], 'sample_rate': 16000, 'n_samples': 16000}
    model = modelling.build('kwspot-s', 12, waveform=True, causal=True)
    steps, window = folder / f'{hop_ms}.tflite', folder / 'window.tflite'
    stateful.write_steps(model, steps, facts, hop_ms=hop_ms)
    formats.WRITERS['litert'](formats.Source(model, facts, np.zeros((1, 16000), np.int16)), window)
    pair = Streamer(load_steps(steps)), Streamer(Windows(load_exported(window), hop_ms=hop_ms))
    shares = np.array([[1 / bench.stream_per_second(streamer) for streamer in pair] for _ in range(n_rounds)])
    counts = [1000 / hop_ms * bench.lite_multiply_adds(file) for file in (steps, window)]
    return {'hop_ms': hop_ms, 'steps_percent_of_a_core': 100 * np.median(shares[:, 0]), 'windows_percent_of_a_core': 100 * np.median(shares[:, 1]),
            'times_less_time': np.median(shares[:, 1] / shares[:, 0]), 'times_fewer_multiply_adds': counts[1] / counts[0]}


def main() -> None:
    "Measure one after the other, and write."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--hours', type=float, default=10.)
    parser.add_argument('--rounds', type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clip, recording = folder / 'clip.wav', folder / 'long.wav'
        soundfile.write(clip, np.random.default_rng(0).normal(0, 0.1, 16000), 16000, 'PCM_16')
        file, steps = bench.write_untrained(folder / 'model.tflite', 'kwspot-s'), folder / 'steps.tflite'
        bench.write_untrained(steps, 'kwspot-s', format='litert-stream', causal=True)
        long_recording(recording, asked.hours)
        found = {'processor': processor(), 'model': 'kwspot-s',
                 'parameters': modelling.build('kwspot-s', 12).count_params(),
                 **clip_beside_kwt(folder),
                 'spot_seconds': from_the_shell(file, clip, asked.rounds),
                 'stream': hours_of_stream(steps, recording, asked.hours),
                 'hops': [steps_beside_windows(folder, hop_ms, asked.rounds) for hop_ms in (20, 40)]}
    text = json.dumps(found, indent=1, default=float, ensure_ascii=False)
    RESULT.with_suffix('.part').write_text(text + '\n', encoding='utf-8')
    os.replace(RESULT.with_suffix('.part'), RESULT)


if __name__ == '__main__': main()
