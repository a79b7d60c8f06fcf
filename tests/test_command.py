"""The command in a shell: exit status, one line on stderr, JSON alone on stdout, nothing half-written."""
import json
import os
import signal
import subprocess
import sys
import time
import wave

import pytest


def kwspot(*args, **options) -> subprocess.CompletedProcess:
    "Run the command as a user does."
    return subprocess.run([sys.executable, '-c', 'from kwspot.cli import main; main()', *map(str, args)],
                          capture_output=True, text=True, check=False, **options)


def write_wav(path, n_samples=16000) -> None:
    "A quiet canonical clip."
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), 'wb') as file:
        file.setparams((1, 2, 16000, 0, 'NONE', ''))
        file.writeframes(b''.join((i % 200 - 100).to_bytes(2, 'little', signed=True) for i in range(n_samples)))


def test_every_command_has_help():
    names = [line.split()[1] for line in kwspot('--help').stdout.splitlines() if line.startswith('│ ') and line[2:3].isalpha()]
    assert {'demo', 'synth', 'fetch', 'audit', 'train', 'evaluate', 'spot', 'export'} <= set(names)
    for name in names:
        shown = kwspot(name, '--help')
        assert shown.returncode == 0 and 'Usage' in shown.stdout


@pytest.mark.parametrize('args', [['nothing'], ['synth'], ['synth', 'x', '--clips', '-1'], ['audit', 'x', '--out', 'x.txt'],
                                  ['evaluate', 'r', 'c', '--split', 'x']])
def test_wrong_usage_exits_2(args, tmp_path):
    assert kwspot(*args, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize('args', [
    ['audit', 'missing'], ['audit', 'empty'], ['audit', 'texts'], ['train', 'empty', '--out', 'run'], ['train', 'one', '--out', 'run'],
    ['evaluate', 'missing', 'one'], ['spot', 'missing', 'one/yes/a_nohash_0.wav'], ['export', 'texts'], ['fetch', 'v9', 'x'],
    ['synth', 'full', '--clips', '10'], ['synth', 'new', '--clips', '10', '--words', 'a/b'], ['train', 'one', '--out', 'run', '--task', 'nonsense,words']])
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


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGINT for a child')
def test_interrupted_synthesis_leaves_nothing(tmp_path):
    child = subprocess.Popen([sys.executable, '-c', 'from kwspot.cli import main; main()', 'synth', 'corpus', '--clips', '30000'],
                             cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.iterdir()) and child.poll() is None: time.sleep(0.05)
    time.sleep(1)
    os.killpg(child.pid, signal.SIGINT)
    stderr = child.communicate(timeout=60)[1]
    assert child.returncode != 0 and 'Traceback' not in stderr, stderr
    assert not list(tmp_path.iterdir())
