"""`kwspot stream` in a shell: the same events from a file and from a pipe, one line for what is refused, no TensorFlow for an exported model."""
import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

COMMAND = [sys.executable, '-c', 'from kwspot.cli import main; main()', 'stream']


def stream(*args, **options) -> subprocess.CompletedProcess:
    "Run the command as a user does."
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, check=False, timeout=120, **options)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "An untrained causal model in steps, which hears something in everything: for LiteRT, and for ONNX where its packages are."
    from kwspot import formats, modelling
    folder, network = tmp_path_factory.mktemp('model'), modelling.build('tc-resnet-8', 3, waveform=True, causal=True)
    facts = {'labels': ['no', 'unknown', 'yes'], 'sample_rate': 16000, 'n_samples': 16000, 'thresholds': {}}
    source = formats.Source(network, facts, np.zeros((0, 16000), np.int16))
    formats.write_litert_stream(source, folder / 'steps.tflite')
    if has_onnx: formats.write_onnx_stream(source, folder / 'steps.onnx')
    return folder


@pytest.fixture(scope='module')
def model(folder):
    "The file for LiteRT."
    return folder / 'steps.tflite'


has_onnx = all(map(importlib.util.find_spec, ('onnx', 'onnxruntime', 'tf2onnx')))
runtimes = pytest.mark.parametrize('name', ['steps.tflite', pytest.param('steps.onnx', marks=pytest.mark.skipif(not has_onnx, reason='needs kwspot[onnx]'))])


@pytest.fixture(scope='module')
def samples():
    "Six seconds of noise that comes and goes."
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(size=96000) * np.repeat(rng.uniform(10, 3000, 12), 8000), -32768, 32767).astype(np.int16)


@pytest.fixture(scope='module')
def recording(samples, tmp_path_factory):
    "The same as a file."
    file = tmp_path_factory.mktemp('audio') / 'noise.wav'
    soundfile.write(file, samples, 16000)
    return file


def test_events_depend_on_neither_chunks_nor_source(model, samples, recording):
    found = [json.loads(stream(model, recording, '--json', '--threshold', 0.2, '--chunk-ms', chunk).stdout) for chunk in (10, 333, 60000)]
    assert found[0]['seconds'] == 6 and len(found[0]['events']) > 0 and set(found[0]['events'][0]) == {'time_s', 'word', 'score'}
    assert found[0] == found[1] == found[2]
    piped = stream(model, '-', '--json', '--threshold', 0.2, input=samples.astype('<i2').tobytes())
    assert (piped.returncode, piped.stderr) == (0, b'')
    assert json.loads(piped.stdout)['events'] == found[0]['events']
    lines = stream(model, recording, '--threshold', 0.2).stdout.decode().splitlines()
    assert [line.split()[2] for line in lines] == [event['word'] for event in found[0]['events']]


def test_other_rate_and_stereo_are_converted(model, samples, tmp_path):
    soundfile.write(tmp_path / 'stereo.flac', np.stack([np.repeat(samples, 2)] * 2, axis=1), 32000)
    done = stream(model, tmp_path / 'stereo.flac', '--json')
    assert done.returncode == 0 and json.loads(done.stdout)['seconds'] == pytest.approx(6, abs=0.01)


def test_a_pipe_that_ends_in_the_middle_of_a_sample(model, samples):
    done = stream(model, '-', '--json', '--threshold', 0.2, input=samples.astype('<i2').tobytes()[:-1])
    assert done.returncode == 1 and json.loads(done.stdout)['events']
    assert done.stderr.decode().startswith('kwspot: the stream stopped in the middle of a 16-bit sample') and done.stderr.count(b'\n') == 1


@pytest.mark.parametrize('content', ['missing', 'folder', 'text', 'nan', 'infinite', 'too loud', 'nothing', 'no samples', '3 Hz'])
def test_what_is_no_audio_is_one_line(content, model, tmp_path):
    file = tmp_path / 'a.wav'
    values = {'nan': np.nan, 'infinite': np.inf, 'too loud': 3000.}
    if content == 'folder': file.mkdir()
    if content == 'text': file.write_text('no audio')
    if content == 'nothing': file.write_bytes(b'')
    if content == 'no samples': soundfile.write(file, np.zeros(0), 16000)
    if content == '3 Hz': soundfile.write(file, np.zeros(16000), 3)
    if content in values: soundfile.write(file, np.array([values[content], 0], np.float32), 16000, subtype='FLOAT')
    done = stream(model, file, '--json')
    assert (done.returncode, done.stdout) == (1, b''), done
    assert done.stderr.startswith(b'kwspot: ') and done.stderr.count(b'\n') == 1, done.stderr


@pytest.mark.parametrize(('kind', 'options'), [('W64', {}), ('RF64', {}), ('AU', {'endian': 'LITTLE'})])
def test_a_file_on_standard_input_is_one_line(kind, options, model, samples, tmp_path):
    soundfile.write(tmp_path / 'a', samples, 16000, format=kind, **options)
    done = stream(model, '-', '--json', input=(tmp_path / 'a').read_bytes())
    assert (done.returncode, done.stdout, done.stderr.count(b'\n')) == (1, b'', 1) and b', not raw 16-bit mono' in done.stderr, done.stderr


def test_silence_and_no_audio_at_all_are_fine(model, tmp_path):
    done = stream(model, '-', '--json', input=b'')
    assert done.returncode == 0 and json.loads(done.stdout) == {'source': '-', 'seconds': 0.0, 'events': []}


@pytest.mark.parametrize(('factor', 'said'), [(0, 'nothing but zeros'), (1000, 'is clipped'), (1, '')])
def test_what_makes_events_doubtful_is_said_in_one_line(factor, said, model, samples, tmp_path):
    loud = np.clip(factor * samples.astype(np.int64), -32768, 32767).astype(np.int16)
    soundfile.write(tmp_path / 'a.wav', loud, 16000)
    done = stream(model, tmp_path / 'a.wav', '--json')
    assert done.returncode == 0 and done.stderr.count(b'\n') == (said != '') and said.encode() in done.stderr, done.stderr


@pytest.mark.parametrize(('suffix', 'said'), [('wav', 'is cut short, the last 1.00 s'), ('aiff', 'is truncated: header promises more samples')])
def test_a_file_that_was_cut_short_is_heard_to_its_end(suffix, said, model, samples, tmp_path):
    file = tmp_path / f'cut.{suffix}'
    soundfile.write(file, samples, 16000)
    file.write_bytes(file.read_bytes()[:-32001])
    done = stream(model, file, '--json', '--threshold', 0.2)
    assert done.returncode == 1 and json.loads(done.stdout)['seconds'] == pytest.approx(5, abs=0.01) and json.loads(done.stdout)['events']
    assert done.stderr.count(b'\n') == 1 and said.encode() in done.stderr, done.stderr


def test_only_the_words_that_are_asked_for(model, recording):
    heard = {word: json.loads(stream(model, recording, '--json', '--threshold', 0.2, '--words', word).stdout)['events'] for word in ('no', 'yes')}
    assert all({event['word'] for event in events} <= {word} for word, events in heard.items()) and any(heard.values())
    done = stream(model, recording, '--words', 'yes,maybe')
    assert done.returncode == 1 and done.stderr.startswith(b"kwspot: the model has no word 'maybe'; it knows no, yes") and done.stderr.count(b'\n') == 1


@pytest.mark.parametrize('args', [[], ['--chunk-ms', '0'], ['--threshold', '2']])
def test_wrong_usage_exits_2(args, model, recording):
    assert stream(model, *([recording] if args else []), *args).returncode == 2


@runtimes
def test_other_runtimes_hear_the_same(name, folder, recording):
    found = [stream(file, recording, '--json', '--threshold', 0.2) for file in (folder / 'steps.tflite', folder / name)]
    expected, told = (json.loads(done.stdout) for done in found)
    assert found[1].stderr == b'' and len(expected['events']) == len(told['events']) > 0
    for one, other in zip(expected['events'], told['events']):
        assert (one['time_s'], one['word']) == (other['time_s'], other['word']) and one['score'] == pytest.approx(other['score'], abs=1e-3)


@runtimes
@pytest.mark.parametrize('content', ['cut', 'one byte short', 'damaged', 'text', 'missing'])
def test_a_model_that_is_none(content, name, tmp_path, recording, folder):
    whole, file = (folder / name).read_bytes(), tmp_path / f'other.{name}'
    damaged = whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:]
    broken = {'cut': whole[:5000], 'one byte short': whole[:-1], 'damaged': damaged, 'text': b'no model\n' * 500}
    if content in broken: file.write_bytes(broken[content])
    done = stream(file, recording)
    assert done.returncode == 1 and done.stderr.count(b'\n') == 1 and done.stderr.startswith(f'kwspot: {file}: '.encode()), done.stderr


@runtimes
def test_spot_takes_a_model_in_steps_too(name, folder, samples, tmp_path):
    soundfile.write(tmp_path / 'a.wav', samples[:16000], 16000)
    done = subprocess.run([*COMMAND[:-1], 'spot', folder / name, tmp_path / 'a.wav', '--json'], capture_output=True, check=True)
    assert json.loads(done.stdout)['results'][0]['word'] in ('no', 'unknown', 'yes')


@runtimes
def test_a_file_is_read_and_opened_once(name, folder, monkeypatch):
    from unittest.mock import Mock
    from kwspot import exported, streaming
    read, run = exported.RUNNERS[(folder / name).suffix]
    monkeypatch.setitem(exported.RUNNERS, (folder / name).suffix, (reader := Mock(wraps=read), run))
    if name.endswith('.onnx'):
        import onnxruntime
        monkeypatch.setattr(onnxruntime, 'InferenceSession', opener := Mock(wraps=onnxruntime.InferenceSession))
    streaming.stored_threshold(folder / name, listener=streaming.open_listener(folder / name))
    assert reader.call_count == 1 and (not name.endswith('.onnx') or opener.call_count == 1)


def test_a_closed_pipe_is_no_drama(model, samples):
    child = subprocess.Popen([*COMMAND, str(model), '-', '--threshold', '0.05'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    many = io.BytesIO(samples.astype('<i2').tobytes() * 5)
    try:
        child.stdin.write(many.read())
        child.stdin.close()
    except BrokenPipeError: pass
    said = child.stderr.read()
    child.wait(60)
    assert b'Traceback' not in said and said.count(b'\n') <= 1, said


def test_a_closed_stdin_is_one_line(model):
    done = subprocess.run(['sh', '-c', 'exec "$@" <&-', 'sh', *COMMAND, str(model), '-'], capture_output=True, check=False, timeout=120)
    assert done.returncode == 1 and done.stderr == b'kwspot: standard input is closed: name a FILE, or pipe raw 16-bit mono into it\n'


@runtimes
def test_an_exported_model_leaves_tensorflow_alone(name, folder, recording):
    code = ("import sys\nfrom kwspot.cli import app\ntry: app(['stream', *sys.argv[1:]])\nexcept SystemExit: pass\n"
            "print(' '.join({'tensorflow', 'keras'} & set(sys.modules)), file=sys.stderr)")
    done = subprocess.run([sys.executable, '-c', code, folder / name, recording], capture_output=True, check=True)
    assert done.stderr.strip() == b'', done.stderr


@runtimes
def test_labels_that_disagree_with_a_model_in_steps_are_one_line(name, folder, recording, tmp_path):
    from kwspot.exported import content_of, facts_of
    from kwspot.modelfile import attach_facts
    file, facts = tmp_path / name, facts_of(folder / name)
    file.write_bytes(content_of(folder / name, facts))
    attach_facts(file, {**facts, 'labels': ['no', 'unknown', 'yes', 'zero']})
    for command in (COMMAND, [*COMMAND[:-1], 'spot']):
        done = subprocess.run([*command, file, recording], capture_output=True, check=False)
        assert done.returncode == 1 and done.stderr.count(b'\n') == 1 and b'lists 4 labels' in done.stderr, done.stderr
