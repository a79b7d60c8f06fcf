"""The commands that train a run or need one, in a shell."""
import json
import shutil
import wave

import pytest
from test_command import kwspot, write_wav


@pytest.fixture(scope='module')
def small_run(tmp_path_factory):
    "A folder with a small corpus, a run that was trained on it for one epoch, and a corpus of other words."
    place = tmp_path_factory.mktemp('evaluate')
    for args in (['synth', 'corpus', '--clips', 240, '--words', 'yes,no'], ['synth', 'other', '--clips', 40, '--words', 'up,down'],
                 ['train', 'corpus', '--out', 'run', '--epochs', 1]):
        done = kwspot(*args, cwd=place)
        assert done.returncode == 0, done.stderr
    return place


def test_evaluate_writes_a_report_that_needs_nothing_else(small_run):
    shutil.copytree(small_run / 'run', small_run / 'twin')
    done = kwspot('evaluate', 'run', 'corpus', '--split', 'all', '--report', 'new/report.html', '--csv', 'tables', '--calibrate',
                  '--against', 'twin', '--json', cwd=small_run)
    assert done.returncode == 0, done.stderr
    scores, page = json.loads(done.stdout), (small_run / 'new/report.html').read_text(encoding='utf-8')
    assert {'accuracy', 'accuracy_ci95', 'macro_f1', 'majority_baseline', 'n_clips', 'n_speakers', 'per_class', 'confusion', 'calibration',
            'operating_points', 'robustness', 'cost', 'comparison'} <= set(scores)
    assert scores['comparison']['difference'] == 0 and scores['comparison']['mcnemar_p'] == 1
    kept = json.loads((small_run / 'run/run.json').read_text(encoding='utf-8')).get('calibration')
    assert kept['split'] == 'valid' if kept else 'no temperature is kept: none of the' in done.stderr, done.stderr
    assert 'http' not in page.replace('http-equiv', '') and page.count('<img') >= 5
    assert {'per_class.csv', 'confusion.csv', 'errors.csv', 'speakers.csv', 'robustness.csv'} <= {file.name for file in (small_run / 'tables').iterdir()}


@pytest.mark.parametrize(('args', 'said'), [(['run', 'other'], 'none of the words'), (['nameless', 'corpus'], 'its labels, sample rate or length are missing'),
                                            (['run', 'corpus', '--report', 'folder.html'], 'is a folder'),
                                            (['run', 'corpus', '--csv', 'run/run.json'], 'is a file'),
                                            (['run', 'corpus', '--report', 'run/run.json/x.html'], 'not a folder')])
def test_evaluate_refuses_in_one_line(args, said, small_run):
    (small_run / 'folder.html').mkdir(exist_ok=True)
    (small_run / 'nameless').mkdir(exist_ok=True)
    info = json.loads((small_run / 'run/run.json').read_text(encoding='utf-8'))
    del info['labels']
    (small_run / 'nameless/run.json').write_text(json.dumps(info), encoding='utf-8')
    done = kwspot('evaluate', *args, cwd=small_run)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1), done.stderr
    assert done.stderr.startswith('kwspot: ') and said in done.stderr


def test_what_is_no_run_is_told_before_the_work(small_run):
    info = json.loads((small_run / 'run/run.json').read_text(encoding='utf-8'))
    (small_run / 'seeds/seed-0').mkdir(parents=True)
    (small_run / 'seeds/seed-0/run.json').write_text(json.dumps({**info, 'labels': ['yes', 'up']}), encoding='utf-8')
    clip = next((small_run / 'corpus/yes').glob('*.wav'))
    for args, said in ((['evaluate', 'run', 'corpus', '--report', 'late.html', '--against', 'seeds/seed-0'], 'different labels'),
                       (['evaluate', 'seeds', 'corpus'], 'holds runs (seed-0)'), (['spot', 'seeds', clip], 'holds runs (seed-0)'),
                       (['spot', 'run/model.keras', clip], 'give the run folder, run'),
                       (['train', 'corpus', '--out', 'run', '--seeds', 2], 'name another folder')):
        done = kwspot(*args, cwd=small_run)
        assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1) and said in done.stderr, done.stderr
    assert not (small_run / 'late.html').exists() and not (small_run / 'run/seed-0').exists()


def test_a_recording_that_was_cut_is_told(small_run):
    content = next((small_run / 'corpus/yes').glob('*.wav')).read_bytes()
    (small_run / 'cut.wav').write_bytes(content[:len(content) // 2])
    done = kwspot('spot', 'run', 'cut.wav', '--json', cwd=small_run)
    assert done.returncode == 0 and 'is cut short, the last 0.50 s' in json.loads(done.stdout)['results'][0]['note'], done
    assert done.stderr.count('cut short') == 1


def test_decisions_become_a_clean_copy(tmp_path):
    made = kwspot('synth', 'corpus', '--clips', 60, '--words', 'yes,no', '--json', cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    clips = {word: sorted(file.name for file in (tmp_path / 'corpus' / word).glob('*.wav')) for word in ('yes', 'no')}
    before = {file: file.read_bytes() for file in (tmp_path / 'corpus').rglob('*.wav')}
    decisions = ['clip,action,value', f'yes/{clips["yes"][0]},drop,', f'yes/{clips["yes"][1]},relabel,no', f'no/{clips["no"][0]},trim,0.1-0.4',
                 'no/nobody_nohash_0.wav,drop,']
    (tmp_path / 'decisions.csv').write_text('\n'.join(decisions), encoding='utf-8')
    done = kwspot('audit', 'corpus', '--apply', 'decisions.csv', '--out', 'clean', '--json', cwd=tmp_path)
    result = json.loads(done.stdout)
    assert (done.returncode, result['n_before'] - result['n_after']) == (0, 1), done
    assert (result['decisions'], result['n_gone']) == ({'drop': 1, 'relabel': 1, 'trim': 1}, 1)
    assert '1 of 4 decisions name clips that are not in the corpus' in done.stderr
    assert 'nobody' not in (tmp_path / 'clean/decisions.csv').read_text(encoding='utf-8')
    assert len(list((tmp_path / 'clean/no').iterdir())) == len(clips['no']) + 1
    with wave.open(str(tmp_path / 'clean/no' / clips['no'][0])) as file: assert file.getnframes() == 4800
    assert before == {file: file.read_bytes() for file in (tmp_path / 'corpus').rglob('*.wav')}
    again = kwspot('audit', 'clean', '--out', 'page.html', '--json', cwd=tmp_path)
    assert json.loads(again.stdout)['n_clips'] == result['n_after'] - json.loads(again.stdout)['n_noise_recordings']
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert '<audio' in page and 'http://' not in page and 'https://' not in page


@pytest.mark.parametrize('text', ['', 'clip,action\nyes/a.wav,remove\n', 'clip,action,value\nyes/a.wav,trim,soon\n', '\x00\x01',
                                  'clip,action\n../a.wav,drop\n'])
def test_decisions_that_make_no_sense_are_one_line(text, tmp_path):
    write_wav(tmp_path / 'one/yes/a_nohash_0.wav')
    (tmp_path / 'decisions.csv').write_text(text, encoding='utf-8')
    done = kwspot('audit', 'one', '--apply', 'decisions.csv', '--out', 'clean', cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if not line.startswith('kwspot: note:')]
    assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith('kwspot: decisions.csv'), done
    assert not (tmp_path / 'clean').exists()


def test_train_and_evaluate_honour_decisions(small_run):
    clips = sorted(file.name for file in (small_run / 'corpus/yes').glob('*.wav'))
    lines = ['clip,action,value', f'yes/{clips[0]},drop,', f'yes/{clips[1]},relabel,no', f'yes/{clips[2]},trim,0.1-0.6']
    (small_run / 'mine.csv').write_text('\n'.join(lines), encoding='utf-8')
    counts = [json.loads(kwspot('evaluate', 'run', 'corpus', '--split', 'all', '--json', *more, cwd=small_run).stdout)['per_class']
              for more in ([], ['--decisions', 'mine.csv'])]
    assert [count['yes']['n'] for count in counts] == [len(clips), len(clips) - 2]
    assert counts[1]['no']['n'] == counts[0]['no']['n'] + 1
    trained = kwspot('train', 'corpus', '--out', 'decided', '--epochs', 1, '--decisions', 'mine.csv', '--learning-rate', 0.002,
                     '--batch-size', 32, '--json', cwd=small_run)
    assert trained.returncode == 0, trained.stderr
    info, plain = json.loads(trained.stdout), json.loads((small_run / 'run/run.json').read_text(encoding='utf-8'))
    assert (info['recipe']['learning_rate'], info['recipe']['batch_size']) == (0.002, 32)
    assert info['decisions'].startswith('3 decisions') and info['corpus']['fingerprint'] != plain['corpus']['fingerprint']
    other = kwspot('train', 'corpus', '--out', 'run', '--epochs', 1, '--decisions', 'mine.csv', cwd=small_run)
    assert other.returncode == 1 and 'begun with decisions=None' in other.stderr and other.stderr.count('\n') == 1


@pytest.mark.parametrize(('start', 'mark'), [('run', 'run, checksum '), ('none', None)])
def test_training_begins_with_what_it_is_told(start, mark, small_run):
    done = kwspot('train', 'other', '--out', f'begun-with-{start}', '--epochs', 1, '--start', start, '--json', cwd=small_run)
    assert done.returncode == 0, done.stderr
    begun = json.loads(done.stdout).get('start')
    assert begun is None if mark is None else begun.startswith(mark)
    assert json.loads((small_run / 'run/run.json').read_text(encoding='utf-8'))['start'].startswith('synthetic kwspot-s')


def test_a_start_that_is_no_run_is_one_line(small_run):
    done = kwspot('train', 'other', '--out', 'never', '--start', 'corpus', cwd=small_run)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1) and 'corpus: is not a run folder' in done.stderr
    assert not (small_run / 'never').exists()


@pytest.mark.parametrize('args', [['audit', 'corpus', '--out', 'corpus/table.csv'], ['evaluate', 'run', 'corpus', '--report', 'corpus/page.html'],
                                  ['evaluate', 'run', 'corpus', '--csv', 'corpus/tables']])
def test_nothing_is_written_into_the_corpus(args, small_run):
    done = kwspot(*args, cwd=small_run)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1) and 'lies in the corpus' in done.stderr, done.stderr
    assert not (small_run / args[-1]).exists()


@pytest.mark.parametrize('args', [['train', 'corpus', '--out', 'never'], ['evaluate', 'run', 'corpus']])
@pytest.mark.parametrize('text', ['clip,action\nyes/a.wav,remove\n', None])
def test_decisions_that_cannot_be_read_are_one_line_everywhere(args, text, small_run):
    (small_run / 'bad.csv').unlink(missing_ok=True)
    if text: (small_run / 'bad.csv').write_text(text, encoding='utf-8')
    done = kwspot(*args, '--decisions', 'bad.csv', cwd=small_run)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1) and done.stderr.startswith('kwspot: bad.csv'), done.stderr
    assert not (small_run / 'never').exists()


def test_audit_judges_labels(small_run):
    done = kwspot('audit', 'corpus', '--labels', '--label-model', 'ridge', '--out', 'labels.csv', '--json', cwd=small_run)
    assert done.returncode == 0, done.stderr
    result, header = json.loads(done.stdout), (small_run / 'labels.csv').read_text(encoding='utf-8').splitlines()[0].split(',')
    assert {'likely_word', 'label_score', 'label_doubts', 'doubted_by', 'wrong_label'} <= set(header)
    assert len(result['labels']) == 20 and {'clip', 'word', 'likely_word', 'label_score', 'doubted_by'} <= set(result['labels'][0])
    assert 'wrong_label' in {finding['finding'] for finding in result['findings']}


def test_export_writes_the_streaming_form_and_the_temperature_is_applied(small_run):
    formats = 'litert,litert-stream,litert-stream-int8,litert-stream-dynamic,savedmodel-stream,c-stream'
    done = kwspot('export', 'run', '--format', formats, '--corpus', 'corpus', '--json', cwd=small_run)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told['c-stream']['top1_agreement'] == told['litert-stream-int8']['top1_agreement'] >= 0.9
    assert told['savedmodel-stream']['max_abs_difference'] < 1e-3
    assert told['litert-stream-int8']['bytes'] < told['litert-stream']['bytes']
    assert told['litert-stream-dynamic']['bytes'] < told['litert-stream']['bytes'] and told['litert-stream-dynamic']['top1_agreement'] >= 0.9
    figures = told['litert-stream']
    assert figures['max_abs_difference'] < 1e-3 and figures['hop_ms'] > 0 and (small_run / 'run/export/model-stream.tflite').is_file()
    assert 'litert-stream' in (small_run / 'run/MODEL_CARD.md').read_text(encoding='utf-8')
    clip = next((small_run / 'corpus/yes').glob('*.wav'))
    for model in ('run', 'run/export/model-stream-dynamic.tflite'):
        heard = kwspot('stream', model, clip, '--json', cwd=small_run)
        assert heard.returncode == 0 and json.loads(heard.stdout)['seconds'] > 0, heard.stderr
    info, sure = json.loads((small_run / 'run/run.json').read_text(encoding='utf-8')), {}
    for temperature in (0.5, 5.):
        told = {**info, 'calibration': {'temperature': temperature}}
        (small_run / 'run/run.json').write_text(json.dumps(told), encoding='utf-8')
        sure[temperature] = json.loads(kwspot('spot', 'run', clip, '--json', cwd=small_run).stdout)['results'][0]['probability']
    (small_run / 'run/run.json').write_text(json.dumps(info), encoding='utf-8')
    assert sure[5.] < sure[0.5]


def test_stream_keeps_a_threshold_with_the_run(small_run):
    word = next(label for label in json.loads((small_run / 'run/run.json').read_text(encoding='utf-8'))['labels']
                if label not in ('silence', 'unknown'))
    fit = ('stream', 'run', '--fit', 'corpus', '--words', word, '--hours', '0.05')
    done = kwspot(*fit, '--per-hour', '100000', '--json', cwd=small_run)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    kept = json.loads((small_run / 'run/run.json').read_text(encoding='utf-8'))['stream'][word]
    assert 0 < facts['threshold'] < 1 and kept['threshold'] == facts['threshold'] and facts['n_words'] > 0
    refused = kwspot('stream', 'run', '-', '--fit', 'corpus', cwd=small_run)
    assert refused.returncode == 2
    unknown = kwspot('stream', 'run', '--fit', 'corpus', '--words', 'nonsense', cwd=small_run)
    assert unknown.returncode == 1 and unknown.stderr.count('\n') == 1 and 'nonsense' in unknown.stderr


def test_false_accepts_are_counted_on_a_background(small_run):
    (small_run / 'radio/late').mkdir(parents=True)
    for name, file in (('talk', 'corpus/_background_noise_'), ('late/more', 'corpus/_background_noise_')):
        (small_run / f'radio/{name}.wav').write_bytes(sorted((small_run / file).glob('*.wav'))[0].read_bytes())
    (small_run / 'radio/broken.wav').write_text('no audio')
    fit = ('stream', 'run', '--fit', 'corpus', '--hours', '0.05', '--per-hour', '100000', '--background', 'radio')
    done = kwspot(*fit, '--json', cwd=small_run)
    assert done.returncode == 0 and done.stderr.count('broken.wav: no WAV') == 1, done.stderr
    facts = json.loads(done.stdout)
    kept = json.loads((small_run / 'run/run.json').read_text(encoding='utf-8'))['stream']['']
    assert kept['background'] == facts['background'] and facts['background']['threshold'] == facts['threshold']
    done = kwspot('evaluate', 'run', 'corpus', '--background', 'radio', '--report', 'radio.html', '--csv', 'heard', '--json', cwd=small_run)
    assert done.returncode == 0, done.stderr
    told, = (row for row in json.loads(done.stdout)['background'] if row['words'] == 'all')
    assert told['kept'] and all(told[name] == kept['background'][name] for name in ('threshold', 'n_false_accepts', 'fired'))
    assert told['hours'] == pytest.approx(kept['background']['hours'])
    assert 'Background</h2>' in (small_run / 'radio.html').read_text(encoding='utf-8')
    assert {'background.csv', 'background_curve.csv', 'background_events.csv'} <= {file.name for file in (small_run / 'heard').iterdir()}
    line = kwspot('evaluate', 'run', 'corpus', '--background', 'radio/talk.wav', cwd=small_run).stdout.splitlines()[-1]
    assert line.startswith('In ') and f"at the kept threshold of {told['threshold']:.2f}" in line
    for args in (['evaluate', 'run', 'corpus'], ['stream', 'run', '--fit', 'corpus']):
        (small_run / 'mute').mkdir(exist_ok=True)
        done = kwspot(*args, '--background', 'mute', cwd=small_run)
        assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1) and 'mute: holds no WAV' in done.stderr, done.stderr


def test_speakers_are_told_as_in_the_training(small_run):
    for file in (small_run / 'corpus').glob('*/*.wav'):
        named = small_run / 'named' / file.parent.name / file.name.replace('_nohash_', '-')
        named.parent.mkdir(parents=True, exist_ok=True)
        named.write_bytes(file.read_bytes())
    pattern = ('--speaker-pattern', '^([^-]+)-')
    assert kwspot('train', 'named', '--out', 'patterned', '--epochs', 1, *pattern, cwd=small_run).returncode == 0
    evaluated = kwspot('evaluate', 'patterned', 'named', '--json', cwd=small_run)
    assert json.loads(evaluated.stdout)['n_speakers'] > 1
    for args in (['export', 'patterned', '--corpus', 'named', '--format', 'litert'],
                 ['stream', 'patterned', '--fit', 'named', '--hours', '0.02', '--per-hour', '100000']):
        done = kwspot(*args, cwd=small_run)
        assert done.returncode == 0 and 'tells no speaker' not in done.stderr, done.stderr
    other = kwspot('evaluate', 'patterned', 'named', '--speaker-pattern', '^(.)', cwd=small_run)
    assert other.returncode == 1 and other.stderr.count('\n') == 1 and 'was trained with the speaker pattern' in other.stderr
