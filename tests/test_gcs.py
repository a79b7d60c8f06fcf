"""Corpora and shards at gs:// URLs: through gcsfs, from a small imitation of Google's JSON interface on this machine that is busy at times."""
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pandas as pd
import pytest

gcsfs = pytest.importorskip('gcsfs')

from kwspot import corpus, preprocessing, shards, storage, tables  # noqa: E402
from kwspot.synth import KEYWORDS, example_corpus  # noqa: E402


class Bucket(BaseHTTPRequestHandler):
    "The calls that gcsfs makes: https://cloud.google.com/storage/docs/json_api/v1; `secret` is a bucket that nobody may see."
    protocol_version = 'HTTP/1.1'
    objects: dict = {} # {name: content} of the one bucket
    busy, asked = 0, 0 # every so many requests; 0: never

    def log_message(self, *words): pass

    def answer(self, content=b'', status=200):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status, reason): self.answer({'error': {'code': status, 'message': reason}}, status)

    def facts(self, name):
        content = self.objects[name]
        return {'name': name, 'bucket': 'bucket', 'size': str(len(content)), 'etag': hashlib.md5(content).hexdigest(), 'generation': '1',
                'updated': '2026-01-01T00:00:00Z', 'timeCreated': '2026-01-01T00:00:00Z'}

    def place(self):
        "(bucket, object or None, parameters), or None where the request was answered."
        where, content = urlsplit(self.path), self.rfile.read(int(self.headers.get('Content-Length') or 0))
        Bucket.asked += 1
        if self.busy and self.asked % self.busy == 0: return self.refuse(503, 'backend error')
        bucket, name = re.fullmatch(r'(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o)?(?:/(.*))?', where.path).groups()
        if bucket == 'secret': return self.refuse(403, 'the caller does not have storage.objects access')
        if bucket != 'bucket': return self.refuse(404, 'The specified bucket does not exist.')
        return unquote(name) if name else None, {key: value[0] for key, value in parse_qs(where.query).items()}, content

    def do_GET(self):
        if not (place := self.place()): return
        name, asked, _ = place
        if name and name not in self.objects: self.refuse(404, f'No such object: bucket/{name}')
        elif name and asked.get('alt') == 'media': self.send_range(self.objects[name])
        elif name: self.answer(self.facts(name))
        elif not urlsplit(self.path).path.endswith('/o'): self.answer({'name': 'bucket'})
        else: self.answer(self.listing(asked))

    def send_range(self, content):
        if asked := re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range') or ''):
            start, end = (int(number) if number else None for number in asked.groups())
            content = content[start:None if end is None else end + 1]
        self.answer(content, 206 if asked else 200)

    def listing(self, asked):
        prefix, mark = asked.get('prefix', ''), asked.get('delimiter')
        names = sorted(name for name in self.objects if name.startswith(prefix))
        folders = {prefix + name[len(prefix):].split(mark)[0] + mark for name in names if mark and mark in name[len(prefix):]}
        files = [name for name in names if not mark or mark not in name[len(prefix):]]
        return {'items': [self.facts(name) for name in files], 'prefixes': sorted(folders)}

    def do_POST(self):
        if not (place := self.place()): return
        _, asked, content = place
        border = b'--' + re.search('boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
        about, whole = (part.split(b'\n\n' if b'\r\n\r\n' not in part else b'\r\n\r\n', 1)[1] for part in content.split(border)[1:3])
        name = json.loads(about)['name']
        if asked.get('ifGenerationMatch') == '0' and name in self.objects: return self.refuse(412, 'conditionNotMet')
        self.objects[name] = whole.removesuffix(b'\n').removesuffix(b'\r')
        self.answer(self.facts(name))

    def do_DELETE(self):
        if not (place := self.place()): return
        if self.objects.pop(place[0], None) is None: return self.refuse(404, 'No such object')
        self.answer(status=204)


@pytest.fixture(scope='module')
def server():
    with ThreadingHTTPServer(('127.0.0.1', 0), Bucket) as web, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        patch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{web.server_port}')
        patch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false') # nobody asks Google what kind of bucket it is
        patch.setattr(storage, '_WAITS', (0.01, 0.02, 0.04))
        storage._connect.cache_clear()
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield Bucket
        web.shutdown()
    storage._connect.cache_clear()


@pytest.fixture(scope='module')
def wanted(server):
    "The index of some clips on the disk; the same clips are in the bucket."
    whole = corpus.index(example_corpus())
    few = pd.concat([rows.head(3) for word, rows in whole.groupby('word') if word in (corpus.NOISE, *KEYWORDS)], ignore_index=True)
    for row in few.itertuples():
        storage.write_atomically(f'gs://bucket/corpus/{row.word}/{Path(row.path).name}', Path(row.path).read_bytes())
    return few


@pytest.mark.parametrize('busy', [0, 11])  # a prime: no call asks so often that each try meets the busy one
def test_a_bucket_gives_the_rows_and_samples_of_the_disk(server, wanted, busy, tmp_path, monkeypatch):
    monkeypatch.setattr(server, 'busy', busy)
    found = corpus.index('gs://bucket/corpus')
    pd.testing.assert_frame_equal(found.drop(columns=['path', 'split']), wanted.drop(columns=['path', 'split']))
    here = preprocessing.pack(wanted, tmp_path / 'here', progress=False)
    assert np.array_equal(preprocessing.pack(found, tmp_path / 'there', progress=False).audio, here.audio)
    far = shards.pack_shards(found, f'gs://bucket/shards-{busy}', clips_per_shard=20)
    assert np.array_equal(far.audio[:], shards.pack_shards(found, tmp_path / 'shards', clips_per_shard=20).audio[:])
    tables.write_table(found, 'gs://bucket/table', rows_per_part=10)
    pd.testing.assert_frame_equal(tables.read_table('gs://bucket/table'), found)


def test_what_does_not_pass_is_one_line(server, wanted, monkeypatch):
    for url, message in (('gs://nowhere/corpus', 'is not there'), ('gs://secret/corpus', 'no permission'), ('gs://bucket/empty', 'nothing is there')):
        with pytest.raises(storage.StorageError, match=message) as told: corpus.index(url)
        assert str(told.value).startswith(url) and '\n' not in str(told.value)
    with storage.claim('gs://bucket/claimed'), pytest.raises(storage.StorageError, match='writes there since'):
        tables.write_table(wanted, 'gs://bucket/claimed')
    with pytest.raises(storage.StorageError, match='exists already'):
        for _ in range(2): storage.write_atomically('gs://bucket/once', b'content', new=True)


def test_a_busy_bucket_is_asked_as_often_as_we_want_and_no_more(server, wanted, monkeypatch, capfd):
    monkeypatch.setattr(server, 'busy', 1)
    before = server.asked
    with pytest.raises(storage.StorageError, match='too busy'): storage.open_bytes('gs://bucket/corpus/none.wav')
    assert server.asked - before == 1 + len(storage._WAITS) # gcsfs would make six requests of each of these
    assert capfd.readouterr().err == '' # nor does it write what it thinks of them
