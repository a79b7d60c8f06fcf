"""The command in a shell: exit status, one line on stderr, JSON alone on stdout, nothing half-written."""
import json
import os
import signal
import struct
import subprocess
import sys
import time
import wave
import zipfile

import numpy as np
import pandas
import pytest
import soundfile


def kwspot(*args, **options) -> subprocess.CompletedProcess:
    "Run the command as a user does."
    return subprocess.run([sys.executable, '-m', 'kwspot', *map(str, args)],
                          capture_output=True, text=True, check=False, **options)


def write_wav(path, n_samples=16000) -> None:
    "A quiet canonical clip."
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), 'wb') as file:
        file.setparams((1, 2, 16000, 0, 'NONE', ''))
        file.writeframes(b''.join((i % 200 - 100).to_bytes(2, 'little', signed=True) for i in range(n_samples)))


def test_every_command_has_help():
    names = [line.split()[1] for line in kwspot('--help').stdout.splitlines() if line.startswith('│ ') and line[2:3].isalpha()]
    assert {'demo', 'synth', 'fetch', 'audit', 'train', 'evaluate', 'spot', 'export', 'stream', 'cache'} <= set(names)
    for name in names:
        shown = kwspot(name, '--help')
        assert shown.returncode == 0 and 'Usage' in shown.stdout
    assert 'kwspot[microphone]' in ' '.join(kwspot('stream', '--help').stdout.replace('│', ' ').split())


def test_version_is_that_of_the_package():
    import kwspot as package
    assert kwspot('--version').stdout == f'kwspot {package.__version__}\n'


@pytest.mark.parametrize('args', [['nothing'], ['synth'], ['synth', 'x', '--clips', '-1'], ['audit', 'x', '--out', 'x.txt'],
                                  ['evaluate', 'r', 'c', '--split', 'x']])
def test_wrong_usage_exits_2(args, tmp_path):
    assert kwspot(*args, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize('args', [
    ['audit', 'missing'], ['audit', 'empty'], ['audit', 'texts'], ['train', 'empty', '--out', 'run'], ['train', 'one', '--out', 'run'],
    ['evaluate', 'missing', 'one'], ['spot', 'missing', 'one/yes/a_nohash_0.wav'], ['export', 'texts'], ['fetch', 'v9', 'x'],
    ['synth', 'full', '--clips', '10'], ['synth', 'new', '--clips', '10', '--words', 'a/b'], ['train', 'one', '--out', 'run', '--task', 'nonsense,words'],
    ['audit', 'one', '--out', 'one/table.csv'], ['pack', 'one', '--out', 'run', '--noise', 'texts'],
    ['fetch', 'own', 'new/place', '--url', 'http://127.0.0.1:9/own.zip', '--sha256', '0' * 64]])
def test_what_is_refused_is_one_line_and_exit_1(args, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'texts/yes').mkdir(parents=True)
    (tmp_path / 'texts/yes/readme.txt').write_text('no audio')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/file').write_text('')
    write_wav(tmp_path / 'one/yes/a_nohash_0.wav')
    before = sorted(tmp_path.rglob('*'))
    done = kwspot(*args, cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if not line.startswith('kwspot: note:')]
    assert (done.returncode, done.stdout) == (1, ''), done
    assert len(lines) == 1 and lines[0].startswith('kwspot: ') and 'Traceback' not in done.stderr, done.stderr
    assert sorted(tmp_path.rglob('*')) == before


def test_json_is_alone_on_stdout(tmp_path):
    made = kwspot('synth', 'my corpus', '--clips', 40, '--words', 'yes,no', '--json', cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)['n_clips'] == 40 and made.stderr == ''
    found = kwspot('audit', 'my corpus', '--out', 'findings.csv', '--json', cwd=tmp_path)
    assert json.loads(found.stdout)['n_clips'] == 40
    assert len((tmp_path / 'findings.csv').read_text(encoding='utf-8').splitlines()) > 40


def test_noise_of_another_folder_is_packed_and_told_once(tmp_path):
    write_wav(tmp_path / 'corpus/yes/a_nohash_0.wav')
    write_wav(tmp_path / 'corpus/_background_noise_/hum.wav', 32000)
    for name in ('one/ch01', 'one/ch02', 'two/ch01', 'three/ch01'): write_wav(tmp_path / f'kitchen/{name}.wav', 48000)
    (tmp_path / 'kitchen/memo.wav').write_text('no sound')
    (tmp_path / 'kitchen/LICENSE').write_text('mine')
    done = kwspot('pack', 'corpus', '--out', 'pack', '--noise', 'kitchen', '--json', cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)['n_clips'] == 1, done
    left_out, found = done.stderr.splitlines()
    assert "left out that cannot be read: 1 (first 'memo.wav'" in left_out
    assert found.endswith('kitchen: 4 recordings, 0.2 minutes, 2 for training, 1 for validation, 1 for testing')
    noise = pandas.read_parquet(tmp_path / 'pack/noise.parquet')
    assert noise['n_samples'].tolist() == [32000] + [48000] * 4
    assert set(noise['split'][noise['path'].str.contains('one')]) == {'train'} # both of its channels


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no signals for a child')
@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_interrupted_synthesis_leaves_nothing(tmp_path, name):
    if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN: pytest.skip(f'{name} is ignored here (nohup), and so it is by what we start')
    child = subprocess.Popen([sys.executable, '-c', 'from kwspot.cli import main; main()', 'synth', 'corpus', '--clips', '30000'],
                             cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.iterdir()) and child.poll() is None: time.sleep(0.05)
    time.sleep(1)
    os.killpg(child.pid, getattr(signal, name))
    stderr = child.communicate(timeout=240)[1]
    assert child.returncode != 0 and 'Traceback' not in stderr, stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A LiteRT file of an untrained network, as `kwspot export` writes it."
    file = tmp_path_factory.mktemp('exported') / 'model.tflite'
    code = f"""
from pathlib import Path
import numpy as np
from kwspot import formats, modelling
facts = dict(labels=['no', 'stop', 'yes'], sample_rate=16000, n_samples=16000)
source = formats.Source(modelling.build('tc-resnet-8', 3, waveform=True), facts, np.zeros((0, 16000), np.int16))
formats.write_litert(source, Path({str(file)!r}))"""
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)
    return file


def write_samples(path, values, *, rate=16000, channels=1, kind='h') -> None:
    "A WAV file of integers (`kind='h'`) or floats (`'f'`)."
    data = struct.pack(f'<{len(values)}{kind}', *values)
    width = struct.calcsize(kind)
    head = struct.pack('<HHIIHH', 3 if kind == 'f' else 1, channels, rate, rate * channels * width, channels * width, 8 * width)
    path.write_bytes(b'RIFF' + struct.pack('<I', 36 + len(data)) + b'WAVEfmt ' + struct.pack('<I', 16) + head + b'data'
                     + struct.pack('<I', len(data)) + data)


def test_spot_hears_any_recording_and_says_what_makes_an_answer_doubtful(exported, tmp_path):
    tone = [3000 * (-1) ** (i // 20) for i in range(16000)]
    write_samples(tmp_path / 'plain.wav', tone)
    write_samples(tmp_path / 'stereo 8 kHz.wav', tone, rate=8000, channels=2)
    write_samples(tmp_path / 'long.wav', 3 * tone)
    write_samples(tmp_path / 'zeros.wav', [0] * 16000)
    write_samples(tmp_path / 'clipped.wav', [10 * value for value in tone[:3200]] + [32767] * 12800)
    write_samples(tmp_path / 'talk.wav', 10 * tone)
    soundfile.write(tmp_path / 'cut.aiff', np.array(tone, np.int16), 16000)
    (tmp_path / 'cut.aiff').write_bytes((tmp_path / 'cut.aiff').read_bytes()[:-8000])
    files = ['plain.wav', 'stereo 8 kHz.wav', 'long.wav', 'zeros.wav', 'clipped.wav', 'talk.wav', 'cut.aiff']
    done = kwspot('spot', exported, *files, '--json', cwd=tmp_path)
    results = json.loads(done.stdout)['results']
    assert done.returncode == 0 and [result['file'] for result in results] == files
    assert all(result['word'] in ('no', 'stop', 'yes') and 0 < result['probability'] <= 1 for result in results)
    assert ['note' in result for result in results] == [False, False, False, True, True, True, True]
    lines = done.stderr.splitlines()
    said = 'nothing but zeros', 'clipped', 'kwspot stream hears all', 'cut.aiff is truncated'
    assert len(lines) == len(said) and all(what in line for what, line in zip(said, lines)), lines
    assert all(line.startswith('kwspot: note: ') for line in lines)


def test_stream_notes_that_a_model_knows_words_only(exported, tmp_path):
    write_samples(tmp_path / 'tone.wav', [3000 * (-1) ** (i // 20) for i in range(16000)])
    done = kwspot('stream', exported, 'tone.wav', cwd=tmp_path)
    assert done.returncode == 0 and 'knows words only, neither unknown nor silence' in done.stderr and done.stderr.count('\n') == 1
    assert kwspot('stream', exported, 'tone.wav', '--threshold', '0.9', cwd=tmp_path).stderr == ''


def test_spot_refuses_what_is_no_recording_in_one_line_each(exported, tmp_path):
    write_samples(tmp_path / 'good.wav', [100, -100] * 8000)
    write_samples(tmp_path / 'nan.wav', [0.1, float('nan')] * 8000, kind='f')
    write_samples(tmp_path / 'infinite.wav', [0.1, float('inf')] * 8000, kind='f')
    write_samples(tmp_path / 'no samples.wav', [])
    (tmp_path / 'text.wav').write_text('not audio\n' * 100)
    (tmp_path / 'empty.wav').write_bytes(b'')
    write_samples(tmp_path / 'lecture.wav', [100, -100] * 300_000, rate=800)
    write_samples(tmp_path / 'slow.wav', [100, -100] * 8000, rate=3)
    bad = ['nan.wav', 'infinite.wav', 'no samples.wav', 'text.wav', 'empty.wav', 'missing.wav', 'slow.wav', 'lecture.wav']
    done = kwspot('spot', exported, *bad, 'good.wav', '--json', cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and [result['file'] for result in json.loads(done.stdout)['results']] == ['good.wav']
    assert len(lines) == len(bad) and all(name in line and line.startswith('kwspot: ') for name, line in zip(bad, lines)), done.stderr
    assert 'is 12.5 minutes long; one word is looked for in 10 at most, kwspot stream hears all of it' in lines[-1]
    assert 'header gives a sample rate of 3 Hz, which no recorder has' in lines[-2]


def test_spot_refuses_what_is_no_model_in_one_line(exported, tmp_path):
    write_samples(tmp_path / 'good.wav', [100, -100] * 8000)
    whole = exported.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    models = {'cut.tflite': whole[:-1], 'short.tflite': whole[:5000], 'text.tflite': b'not a model\n' * 100, 'damaged.tflite': bytes(damaged),
              'other.tflite': whole[:zipfile.ZipFile(exported).infolist()[0].header_offset], 'empty.keras': b'', 'model.txt': b''}
    for name, content in models.items():
        (tmp_path / name).write_bytes(content)
        done = kwspot('spot', name, 'good.wav', cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1) and done.stderr.startswith(f'kwspot: {name}: '), done


def test_spot_starts_without_what_training_needs(exported, tmp_path):
    write_samples(tmp_path / 'good.wav', [100, -100] * 8000)
    code = 'import sys; from kwspot.cli import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code, 'spot', exported, tmp_path / 'good.wav'], capture_output=True, text=True, check=True)
    assert not {'tensorflow', 'keras', 'pandas', 'scipy', 'numba', 'matplotlib', 'librosa'} & set(done.stdout.split())


def test_the_cache_is_listed_and_cleared(tmp_path):
    write_wav(tmp_path / 'cache/kwspot/example-1-x/yes/a_nohash_0.wav')
    if sys.platform != 'linux': pytest.skip('the cache folder cannot be named by XDG_CACHE_HOME')
    environment = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    listed = json.loads(kwspot('cache', '--json', env=environment).stdout)
    assert [one['kind'] for one in listed['things']] == ['embedded corpus'] and listed['bytes'] == 32044 and not listed['removed']
    assert json.loads(kwspot('cache', '--clear', '--days', '1', '--json', env=environment).stdout)['things'] == []
    assert kwspot('cache', '--clear', env=environment).returncode == 0
    assert list((tmp_path / 'cache/kwspot').iterdir()) == []
