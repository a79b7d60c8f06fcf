"""Shards written by other processes and to other places: a worker that dies, a bucket that drops connections."""
import os
import signal
import threading
import time

import numpy as np
import pytest

from kwspot.corpus import CorpusError, index
from kwspot.preprocessing import open_pack
from kwspot.shards import open_shards, pack_shards, window_order
from kwspot.synth import example_corpus


def kill_when_begun(process, folder):
    "Kill a worker as soon as a shard is there."
    while not any(folder.glob('shard-*.parquet')): time.sleep(0.002)
    os.kill(process, getattr(signal, 'SIGKILL', signal.SIGTERM))


def contents(folder): return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope='module')
def table(): return index(example_corpus())


@pytest.fixture(scope='module')
def alone(table, tmp_path_factory):
    "Shards written by this process alone."
    return pack_shards(table, tmp_path_factory.mktemp('alone')/'shards', clips_per_shard=100, n_workers=1)


def test_workers_of_a_cluster_write_the_same_bytes_also_when_one_is_killed(table, alone, tmp_path):
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        pack_shards(table, tmp_path/'two', clips_per_shard=100, cluster=cluster.scheduler_address)
        killer = threading.Thread(target=kill_when_begun, args=(next(iter(cluster.workers.values())).pid, tmp_path/'killed'))
        killer.start()
        pack_shards(table, tmp_path/'killed', clips_per_shard=100, cluster=cluster.scheduler_address)
        killer.join()
    for name in ('two', 'killed'): assert contents(tmp_path/name) == contents(alone.folder), name


@pytest.fixture(scope='module')
def store():
    "An S3-compatible store on this machine, as a file system of fsspec, with a bucket in it."
    pytest.importorskip('s3fs')
    server = pytest.importorskip('moto.server').ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {'AWS_ACCESS_KEY_ID': 'test', 'AWS_SECRET_ACCESS_KEY': 'test', 'AWS_DEFAULT_REGION': 'us-east-1',
                            'AWS_ENDPOINT_URL': f'http://127.0.0.1:{server.get_host_and_port()[1]}'}.items():
            patch.setenv(name, value)
        import fsspec
        system = fsspec.filesystem('s3', skip_instance_cache=True)
        system.mkdir('kwspot-shards')
        yield system
    server.stop()


@pytest.fixture
def bucket(store, request): return f's3://kwspot-shards/{request.node.name}'


def test_shards_in_object_storage(table, alone, store, bucket):
    far = pack_shards(table, bucket, clips_per_shard=100)
    assert far.clips.equals(alone.clips) and far.fingerprint == alone.fingerprint
    rows = np.arange(len(far))[window_order(np.arange(len(far)), 256, seed=[0])]
    reader = far.ahead(rows, 256)
    for at in range(0, len(rows), 64): assert np.array_equal(reader(rows[at:at + 64]), alone.audio[rows[at:at + 64]])
    assert np.array_equal(far.noise, alone.noise)
    assert open_pack(bucket).fingerprint == alone.fingerprint

    place = bucket.removeprefix('s3://')
    before = {one['name']: one['LastModified'] for one in store.ls(place, detail=True)}
    pack_shards(table, bucket, clips_per_shard=100)
    assert {one['name']: one['LastModified'] for one in store.ls(place, detail=True, refresh=True)} == before

    [first, *_] = sorted(name for name in before if name.endswith('.npy') and 'shard-' in name)
    whole = store.cat_file(first)
    store.pipe_file(first, whole[:-1000])
    with pytest.raises(CorpusError, match='cut short'): open_shards(bucket)
    store.pipe_file(first, whole[:-10] + bytes(10))
    with pytest.raises(CorpusError, match='is not what was packed; remove this file'): open_shards(bucket).check()
    store.rm_file(first)
    assert np.array_equal(pack_shards(table, bucket, clips_per_shard=100).audio[:100], alone.audio[:100])


def test_a_second_run_into_one_bucket_is_told_of_the_first(table, bucket):
    from kwspot.storage import claim
    with claim(bucket), pytest.raises(CorpusError, match=f'process {os.getpid()} on'):
        pack_shards(table, bucket, clips_per_shard=100)


def test_a_corpus_in_a_store_is_listed_once_however_many_shards(table, alone, tmp_path, monkeypatch):
    from kwspot import elsewhere
    system = pytest.importorskip('fsspec').filesystem('memory')
    few = table.groupby('word').head(2)
    for clip in few.itertuples(): system.pipe_file(f'/listed/{clip.word}/{os.path.basename(clip.path)}', open(clip.path, 'rb').read())
    far, listed, list_all = index('memory://listed'), [], elsewhere.list_all
    monkeypatch.setattr(elsewhere, 'list_all', lambda url: listed.append(url) or list_all(url))
    shards = pack_shards(far, tmp_path/'shards', clips_per_shard=4, n_workers=1)
    assert len(shards.audio.starts) > 8 and listed == ['memory://listed']
