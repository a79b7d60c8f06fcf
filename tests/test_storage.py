"""Corpora in archives and in an object store: the same rows and bytes as from a folder, through throttling and dropped connections."""
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kwspot import anomaly, archives, corpus, preprocessing, storage, tables
from kwspot.synth import KEYWORDS, example_corpus

SLOW_DOWN = b'<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
DENIED = b'<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'


class Faults:
    "A WSGI application in front of another one that is as bad as a real store."
    def __init__(self, app):
        self.app, self.busy, self.drop, self.n_asked, self.lock = app, 0, 0, 0, threading.Lock() # every so many requests; 0: never

    def __call__(self, environ, start_response):
        with self.lock:
            self.n_asked += 1
            busy = self.busy and self.n_asked % self.busy == 0
            drop = self.drop and self.n_asked % self.drop == 0
        if environ['PATH_INFO'].startswith('/private'):
            start_response('403 Forbidden', [('Content-Type', 'application/xml')])
            return [] if environ['REQUEST_METHOD'] == 'HEAD' else [DENIED]
        if busy:
            start_response('503 Slow Down', [('Content-Type', 'application/xml')])
            return [] if environ['REQUEST_METHOD'] == 'HEAD' else [SLOW_DOWN]
        answer = self.app(environ, start_response)
        return self.cut(answer) if drop and environ['REQUEST_METHOD'] == 'GET' else answer

    def cut(self, answer):
        "The first half of an answer, and then nothing."
        content = b''.join(answer)
        yield content[:len(content) // 2]
        raise ConnectionResetError


def forget_connections(s3fs):
    "Those to the store of another test lead nowhere."
    storage._connect.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope='module')
def server():
    "An S3-compatible store on loopback; yields its faults."
    s3fs = pytest.importorskip('s3fs')
    moto = pytest.importorskip('moto.server')
    from werkzeug.serving import make_server
    faults = Faults(moto.DomainDispatcherApplication(moto.create_backend_app))
    served = make_server('127.0.0.1', 0, faults, threaded=True)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    settings = dict(AWS_ENDPOINT_URL=f'http://127.0.0.1:{served.server_port}', AWS_ACCESS_KEY_ID='key', AWS_SECRET_ACCESS_KEY='secret',
                    AWS_DEFAULT_REGION='us-east-1')
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    forget_connections(s3fs)
    storage._system('s3://bucket')[0].mkdir('bucket')
    yield faults
    served.shutdown()
    forget_connections(s3fs)
    for name, value in before.items(): os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(autouse=True)
def impatient(monkeypatch, request):
    "Short waits, and no faults left over from another test."
    monkeypatch.setattr(storage, '_WAITS', (0.01, 0.02, 0.04, 0.08))
    yield
    if 'server' in request.fixturenames: vars(request.getfixturevalue('server')).update(busy=0, drop=0)


def tar_of(path, files, mode='w'):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    "One corpus as a folder and as archives: {kind: where}."
    base = tmp_path_factory.mktemp('places')
    whole = corpus.index(example_corpus())
    whole = pd.concat([rows.head(3) if word != corpus.NOISE else rows for word, rows in whole.groupby('word') if word in (corpus.NOISE, *KEYWORDS)])
    files = {f'{row.word}/{Path(row.path).name}': Path(row.path).read_bytes() for row in whole.itertuples()}
    for split, name in (('test', 'testing_list.txt'), ('valid', 'validation_list.txt')):
        files[name] = ''.join(f'{row.word}/{Path(row.path).name}\n' for row in whole[whole['split'] == split].itertuples()).encode()
    for name, content in files.items():
        (base/'folder'/name).parent.mkdir(parents=True, exist_ok=True)
        (base/'folder'/name).write_bytes(content)
    tar_of(base/'corpus.tar', files)
    tar_of(base/'corpus.tar.gz', {f'speech/{name}': content for name, content in reversed(files.items())}, 'w:gz')
    with zipfile.ZipFile(base/'corpus.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items(): archive.writestr(name, content)
    (base/'shards').mkdir()
    for shard in range(3):
        samples = {}
        for number, row in list(enumerate(corpus.index(base/'folder').itertuples()))[shard::3]:
            samples[f'{number:06d}.wav'] = files[f'{row.word}/{Path(row.path).name}']
            samples[f'{number:06d}.json'] = json.dumps({'word': row.word, 'speaker': row.speaker, 'take': row.take, 'split': row.split}).encode()
        tar_of(base/'shards'/f'{shard:03d}.tar', samples)
    return {'folder': base/'folder', 'tar': base/'corpus.tar', 'tar.gz': base/'corpus.tar.gz', 'zip': base/'corpus.zip', 'shards': base/'shards'}


@pytest.fixture(scope='module')
def stored(places, server):
    "The same in the store: {kind: URL}."
    for file in places['folder'].rglob('*.*'):
        storage.write_atomically(f's3://bucket/corpus/{file.relative_to(places["folder"]).as_posix()}', file.read_bytes())
    for file in (places['tar'], places['zip']): storage.write_atomically(f's3://bucket/{file.name}', file.read_bytes())
    for file in places['shards'].iterdir():
        with storage.writing(f's3://bucket/shards/{file.name}') as temporary: temporary.write_bytes(file.read_bytes())
    return {'s3': 's3://bucket/corpus', 's3 tar': 's3://bucket/corpus.tar', 's3 zip': 's3://bucket/corpus.zip', 's3 shards': 's3://bucket/shards'}


def index_quietly(where):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', corpus.CorpusWarning) # of the tar.gz
        return corpus.index(where)


NAMES = ['path', 'name_form', 'odd_name', 'near_copy', 'duplicate_of', 'near_duplicate_of', 'findings']

def everything(where, folder):
    "Index, audit and pack of a corpus, all but the names."
    index = index_quietly(where)
    packed = preprocessing.pack(index, folder, progress=False)
    assert packed.clips['problem'].eq('').all()
    audit = anomaly.audit(index, progress=False)
    return index.drop(columns='path'), audit.drop(columns=[name for name in NAMES if name in audit]), np.array(packed.audio), np.array(packed.noise)


@pytest.fixture(scope='module')
def wanted(places, tmp_path_factory):
    return everything(places['folder'], tmp_path_factory.mktemp('pack')/'pack')


def assert_same(found, wanted):
    for one, other in zip(found[:2], wanted[:2]): pd.testing.assert_frame_equal(one, other)
    for one, other in zip(found[2:], wanted[2:]): np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('kind', ['tar', 'tar.gz', 'zip', 'shards'])
def test_an_archive_gives_the_rows_and_bytes_of_the_folder(kind, places, wanted, tmp_path):
    assert_same(everything(places[kind], tmp_path/'pack'), wanted)


@pytest.mark.parametrize('kind', ['s3', 's3 tar', 's3 zip', 's3 shards'])
def test_a_store_gives_the_rows_and_bytes_of_the_folder(kind, stored, wanted, tmp_path):
    assert_same(everything(stored[kind], tmp_path/'pack'), wanted)


@pytest.mark.parametrize('fault', ['busy', 'drop'])
@pytest.mark.parametrize('kind', ['s3', 's3 tar'])
def test_a_store_that_is_busy_or_drops_connections_gives_them_too(fault, kind, stored, server, wanted, tmp_path):
    archives._archives.clear()
    setattr(server, fault, 3)
    asked = server.n_asked
    assert_same(everything(stored[kind], tmp_path/'pack'), wanted)
    assert server.n_asked > asked + 3


def test_what_does_not_pass_is_one_line(stored, server):
    for url, message in (('s3://nowhere/corpus', 'no such bucket'), ('s3://private/corpus', 'no permission'),
                         ('s3://private/corpus.tar', 'no permission'), ('s3://bucket/none.tar', 'no such file'), ('s3://bucket/empty', 'nothing is there'),
                         ('s3:///corpus', 'names no bucket'), ('http://127.0.0.1:9/corpus.tar', 'drops again and again')):
        with pytest.raises(storage.StorageError, match=message) as caught: corpus.index(url)
        assert str(caught.value).startswith(url) and '\n' not in str(caught.value)
    with pytest.raises(storage.StorageError, match='no permission'): storage.write_atomically('s3://private/table', b'')
    index = corpus.index(stored['s3'])
    server.busy = 1
    for job in (lambda: corpus.index(stored['s3']), lambda: anomaly.measure_files(index['path'].tolist(), progress=False),
                lambda: corpus.read_clip(index['path'].iloc[0]), lambda: storage.write_atomically('s3://bucket/new', b'')):
        with pytest.raises(storage.StorageError, match='too busy') as caught: job()
        assert '\n' not in str(caught.value)
    server.busy, server.drop = 0, 1
    with pytest.raises(storage.StorageError, match='drops again and again'): corpus.index(stored['s3'])


def test_a_clip_that_is_gone_or_new_is_that_clips_matter(stored, server, places, tmp_path):
    for file in places['folder'].glob('*/*'):
        if file.parent.name in ('yes', 'no', 'up'): storage.write_atomically(f's3://bucket/changing/{file.parent.name}/{file.name}', file.read_bytes())
    index = corpus.index('s3://bucket/changing')
    packed = preprocessing.pack(index, tmp_path/'pack', progress=False)
    first, second = index['path'].iloc[:2]
    storage.remove(first)
    other = storage.open_bytes(second)
    storage.write_atomically(second, other[:44] + other[44:][::-1])
    assert corpus.fingerprint(index) != packed.fingerprint
    with pytest.raises(corpus.ClipError, match='no such file'): corpus.read_clip(first)
    with pytest.warns(corpus.CorpusWarning, match='1 of'): changed = preprocessing.pack(index, tmp_path/'pack', progress=False)
    assert changed.clips['problem'].tolist()[:2] == ['no such file', '']
    assert (changed.audio[1] != packed.audio[1]).any()
    np.testing.assert_array_equal(changed.audio[2:], packed.audio[2:])


def test_an_archive_cut_short_says_where_and_gives_what_it_has(places, server, tmp_path):
    content = places['tar'].read_bytes()
    (tmp_path/'cut.tar').write_bytes(content[:-300_000])
    storage.write_atomically('s3://bucket/cut.tar', content[:-300_000])
    for where in (tmp_path/'cut.tar', 's3://bucket/cut.tar'):
        with pytest.warns(corpus.CorpusWarning, match='end too early: 1') as caught: index = corpus.index(where)
        assert 'members before that can be read' in str(caught[0].message)
        assert 20 < len(index) < len(corpus.index(places['tar'])) and (index['n_samples'] > 0).all()
        assert all(len(corpus.read_clip(path)) for path in index['path'][::10])
    (tmp_path/'cut.zip').write_bytes(places['zip'].read_bytes()[:-100])
    with pytest.raises(storage.StorageError, match='is no zip archive'): corpus.index(tmp_path/'cut.zip')
    (tmp_path/'cut.tar.gz').write_bytes(places['tar.gz'].read_bytes()[:100_000])
    with pytest.warns(corpus.CorpusWarning, match='end too early: 1'): corpus.index(tmp_path/'cut.tar.gz')
    (tmp_path/'short.tar').write_bytes(content[:100_000])
    with pytest.raises(corpus.CorpusError, match='cut short in .*get it again'): corpus.index(tmp_path/'short.tar')


@pytest.mark.parametrize('place', ['s3://bucket/both', 'local'])
def test_of_two_writers_one_is_told_and_nothing_is_lost(place, server, tmp_path):
    place = str(tmp_path) if place == 'local' else place
    results = {}
    def write(name):
        try: results[name] = storage.write_atomically(storage.join(place, 'part'), name.encode() * 1000, new=True)
        except storage.StorageError as error: results[name] = str(error)
    writers = [threading.Thread(target=write, args=(name,)) for name in 'abcd']
    for writer in writers: writer.start()
    for writer in writers: writer.join()
    winner, = [name for name, result in results.items() if result is None]
    assert storage.open_bytes(storage.join(place, 'part')) == winner.encode() * 1000
    assert all('exists already' in result for result in results.values() if result)
    with storage.claim(place), pytest.raises(storage.StorageError, match='writes there since'), storage.claim(place): pass
    assert not storage.exists(storage.join(place, '.writing.json'))


def test_a_table_is_whole_or_as_it_was(server, places):
    index = corpus.index(places['folder'])
    tables.write_table(index, 's3://bucket/table', rows_per_part=20)
    assert tables.read_table('s3://bucket/table').attrs['folder'] == str(places['folder'])
    pd.testing.assert_frame_equal(tables.read_table('s3://bucket/table'), index)
    def stopped():
        yield index[:30]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): tables.write_table(stopped(), 's3://bucket/table', rows_per_part=20)
    pd.testing.assert_frame_equal(tables.read_table('s3://bucket/table'), index)
    server.busy = 3
    tables.write_table(index[:50], 's3://bucket/table', rows_per_part=20)
    pd.testing.assert_frame_equal(tables.read_table('s3://bucket/table'), index[:50])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


def test_a_web_server_is_read_only_and_may_know_no_ranges(places, server):
    def handler(*args): return Quiet(*args, directory=str(places['folder'].parent))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{web.server_port}'
        found, wanted = corpus.index(f'{url}/folder'), corpus.index(places['folder'])
        pd.testing.assert_frame_equal(found.drop(columns='path'), wanted.drop(columns='path'))
        with pytest.raises(storage.StorageError, match='sends no ranges'): corpus.index(f'{url}/corpus.tar')
        with pytest.raises(storage.StorageError, match='http is read-only'): storage.write_atomically(f'{url}/x', b'')
        web.shutdown()


def test_mswc_has_its_speakers_and_splits_in_tables(tmp_path):
    import soundfile
    tone = (8000 * np.sin(np.arange(16000) / 5)).astype(np.int16)
    files, rows = {}, []
    for word in ('abend', 'zeit'):
        for number in range(6):
            content = io.BytesIO()
            soundfile.write(content, tone, 16000, format='OGG', subtype='OPUS')
            link = f'{word}/common_voice_de_{number:08d}.opus'
            files[f'de/clips/{link}'] = content.getvalue()
            rows.append((('TRAIN', 'DEV', 'TEST')[number // 2], link, word, 'True', f'{number // 2:064x}', 'FEMALE'))
    table = '\n'.join(','.join(row) for row in [('SET', 'LINK', 'WORD', 'VALID', 'SPEAKER', 'GENDER'), *rows]).encode()
    tar_of(tmp_path/'de.tar', {**files, 'de/de_splits.csv': table})
    index = corpus.index(tmp_path/'de.tar')
    assert index['split'].tolist() == ['train', 'train', 'valid', 'valid', 'test', 'test'] * 2
    assert index['speaker'].str.len().eq(64).all() and index['n_samples'].eq(16000).all() and index['sample_rate'].eq(16000).all()
    clip = corpus.read_clip(index['path'].iloc[0])
    assert len(clip) == 16000 and np.corrcoef(clip, tone)[0, 1] > 0.99
    assert corpus.read_header(index['path'].iloc[0]).codec == 'opus'
    for name, content in files.items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_bytes(content)
    for split, name in (('TRAIN', 'train.csv'), ('DEV', 'dev.csv'), ('TEST', 'test.csv')):
        some = [row[1:] for row in rows if row[0] == split]
        (tmp_path/'de'/name).write_text('LINK,WORD,VALID,SPEAKER,GENDER\n' + '\n'.join(map(','.join, some)))
    for where in (tmp_path/'de', tmp_path/'de'/'clips'):
        pd.testing.assert_frame_equal(corpus.index(where).drop(columns='path'), index.drop(columns='path'))


def test_the_command_takes_archives_and_urls(places, stored, server, monkeypatch, capsys):
    from kwspot.cli import main
    index = corpus.index(places['folder'])
    monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning) # `main` replaces it
    def command(*args):
        with pytest.raises(SystemExit) as ended: main([*map(str, args)])
        return ended.value.code, *capsys.readouterr()
    def in_a_shell(*args):
        program = [sys.executable, '-c', 'from kwspot.cli import main; main()', *map(str, args)]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr
    for call, where, out in ((in_a_shell, places['zip'], 's3://bucket/audit.parquet'), (command, stored['s3 shards'], 's3://bucket/audit/')):
        status, told, wrong = call('audit', where, '--json', '--out', out)
        assert status == 0, wrong
        found = json.loads(told)
        assert (found['folder'], found['n_clips']) == (str(where), int((index['word'] != corpus.NOISE).sum()))
        assert tables.read_table(out)['speaker'].tolist() == index['speaker'].tolist()
    status, told, wrong = command('audit', 's3://private/corpus')
    assert (status, told) == (1, '') and 'no permission' in wrong and len(wrong.splitlines()) == 1
