"""The same work on this machine and on a cluster of processes: the same rows and bytes, also when workers are killed."""
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

distributed = pytest.importorskip('distributed')

from kwspot import anomaly, corpus, preprocessing  # noqa: E402
from kwspot.cluster import ClusterError, connect, each_part  # noqa: E402
from kwspot.synth import example_corpus  # noqa: E402


@pytest.fixture(scope='module')
def client():
    "Four workers, processes of their own, as a cluster has them."
    logging.getLogger('distributed').setLevel(logging.CRITICAL)
    with distributed.LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None,
                                  silence_logs=logging.CRITICAL) as cluster, connect(cluster.scheduler_address) as connected:
        yield connected


@pytest.fixture(scope='module')
def table():
    "Some clips of each word, and the noise."
    whole = corpus.index(example_corpus())
    return whole.groupby('word').head(16).reset_index(drop=True)


@pytest.fixture(scope='module')
def audited(table): return anomaly.audit(table, n_workers=1)


@pytest.fixture(scope='module')
def packed(table, tmp_path_factory): return preprocessing.pack(table, tmp_path_factory.mktemp('alone') / 'pack', n_workers=1)


def contents(folder):
    "Every file of a folder."
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def kill_one(client, after):
    "A thread that kills a worker after some seconds."
    def kill():
        time.sleep(after)
        pids = list(client.run(os.getpid).values())
        if pids: os.kill(random.choice(pids), getattr(signal, 'SIGKILL', signal.SIGTERM))
    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_index_is_the_same(client):
    whole = corpus.index(example_corpus(), cluster=client)
    pd.testing.assert_frame_equal(whole, corpus.index(example_corpus()))


def test_audit_and_pack_are_the_same(client, table, audited, packed, tmp_path):
    pd.testing.assert_frame_equal(anomaly.audit(table, cluster=client), audited)
    assert contents(preprocessing.pack(table, tmp_path / 'pack', cluster=client).folder) == contents(packed.folder)


def test_growing_pack_is_the_same(client, table, packed, tmp_path):
    preprocessing.pack(table.iloc[::2], tmp_path / 'pack', n_workers=1)
    grown = preprocessing.pack(table, tmp_path / 'pack', cluster=client) # half of the rows come from the older pack
    assert contents(grown.folder) == contents(packed.folder)


@pytest.mark.parametrize('seed', range(3))
def test_killed_worker_changes_nothing(client, table, audited, packed, tmp_path, seed):
    killer = kill_one(client, random.Random(seed).uniform(0, 0.7))
    pd.testing.assert_frame_equal(anomaly.audit(table, cluster=client), audited)
    assert contents(preprocessing.pack(table, tmp_path / 'pack', cluster=client).folder) == contents(packed.folder)
    killer.join()


def test_environment_names_the_cluster(client, table, monkeypatch):
    monkeypatch.setenv('KWSPOT_CLUSTER', 'tcp://127.0.0.1:1')
    with pytest.raises(ClusterError, match='no Dask scheduler answers there'): list(each_part(len, ['a']))
    monkeypatch.setenv('KWSPOT_CLUSTER', client.scheduler.address)
    assert list(each_part(len, ['a', 'bc'])) == [1, 2]


def test_corpus_that_workers_do_not_see(client, table, tmp_path):
    moved = table.head(50).assign(path=[str(tmp_path / 'gone' / Path(path).name) for path in table['path'].head(50)])
    moved.attrs['folder'] = str(tmp_path / 'gone')
    with pytest.raises(corpus.CorpusError, match='is not there on .*; .* not shared with the workers'):
        anomaly.measure_files(moved['path'].tolist(), cluster=client, folder=moved.attrs['folder'])
    with pytest.raises(corpus.CorpusError, match='not shared with the workers'):
        preprocessing.pack(moved, tmp_path / 'pack', cluster=client)


def test_command_takes_the_address(client, table, tmp_path, monkeypatch, capsys):
    from kwspot.cli import main
    monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning) # `main` replaces it
    for row in table.groupby('word').head(2).itertuples():
        (tmp_path / 'corpus' / row.word).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row.path, tmp_path / 'corpus' / row.word / Path(row.path).name)
    def command(*more):
        with pytest.raises(SystemExit) as ended: main(['audit', str(tmp_path / 'corpus'), '--json', *more])
        return ended.value.code, *capsys.readouterr()
    assert command('--cluster', client.scheduler.address) == command()
    status, told, wrong = command('--cluster', 'tcp://127.0.0.1:1')
    assert (status, told) == (1, '') and wrong.startswith('kwspot: tcp://127.0.0.1:1: no Dask scheduler') and wrong.count('\n') == 1
    assert not os.environ.get('KWSPOT_CLUSTER')


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "Three words, packed."
    whole = corpus.index(example_corpus())
    few = whole[whole['word'].isin(['no', 'up', 'yes', corpus.NOISE])].reset_index(drop=True)
    return preprocessing.pack(few, tmp_path_factory.mktemp('small') / 'pack', n_workers=1)


def same_judgement(one, other):
    "The same but for what another number of threads changes in sums."
    fields = ('rows', 'probabilities', 'embeddings', 'groups')
    pairs = [(getattr(one, name), getattr(other, name)) for name in fields]
    return one.labels == other.labels and all(np.allclose(here, there, rtol=1e-3, atol=1e-4) for here, there in pairs)


def test_folds_of_labels_are_the_same(client, small, tmp_path, monkeypatch):
    from kwspot import labels, training
    assert same_judgement(labels.judge_with_ridge(small, n_folds=2, cluster=client), labels.judge_with_ridge(small, n_folds=2))
    monkeypatch.setattr(labels, 'LABEL_RECIPE', training.Recipe('plain'))
    judge = partial(labels.judge_with_networks, small, model='tc-resnet-8', n_folds=2, epochs=1, folder=tmp_path, progress=False)
    there = judge(cluster=client)
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob('*/fold-*/model.keras')}
    assert same_judgement(judge(), there) # by the runs that the workers left
    assert len(runs) == 2 and all(path.stat().st_mtime_ns == before for path, before in runs.items())


def test_seeds_and_evaluation_are_the_same(client, small, tmp_path):
    from kwspot import evaluation, training
    how = {'recipe': training.Recipe('plain', model='tc-resnet-8', epochs=1), 'progress': False}
    there = training.train_seeds(small, tmp_path / 'there', seeds=(0, 1), cluster=client, **how)
    here = training.train(small, tmp_path / 'here', seed=1, **how)
    loss, other = here.info['metrics']['valid_loss'], there['valid_loss'].loc[0]
    assert abs(there['valid_loss'].loc[1] - loss) < 0.1 * abs(other - loss), (there, loss)
    _, alone = evaluation.predictions(here, small.clips, split='all')
    for clips in (small, small.clips): # blocks of a pack, and of recordings
        heard, shared = evaluation.predictions(here, clips, split='all', cluster=client)
        assert heard['path'].tolist() == small.clips['path'].tolist() and np.allclose(shared, alone, atol=1e-4)


@pytest.fixture
def processes(tmp_path):
    "A scheduler and a worker as one starts them by hand: the address, and the scheduler's process."
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    def start(*words): return subprocess.Popen([sys.executable, '-m', 'distributed.cli.' + words[0], *words[1:], '--no-dashboard'],
                                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    address = f'tcp://127.0.0.1:{port}'
    both = [start('dask_scheduler', '--host', '127.0.0.1', '--port', str(port)), start('dask_worker', address, '--nthreads', '1', '--no-nanny')]
    yield address, both[0]
    for process in both: process.kill()
    for process in both: process.wait()


def test_scheduler_that_is_killed_is_one_line_and_the_pack_stays(processes, table, packed, tmp_path, monkeypatch):
    address, scheduler = processes
    preprocessing.pack(table, tmp_path / 'pack', n_workers=1)
    before = contents(tmp_path / 'pack')
    monkeypatch.setattr('kwspot.cluster._PATIENCE', 60.) # on a busy machine it takes long to start
    for _ in range(100):
        with suppress(ClusterError), connect(address): break
        time.sleep(0.3)
    results = each_part(time.sleep, [0.01] * 1000, cluster=address)
    next(results)
    scheduler.kill()
    monkeypatch.setattr('kwspot.cluster._PATIENCE', 1.)
    with pytest.raises(ClusterError, match='the scheduler went away in the middle of the work') as told: list(results)
    assert '\n' not in str(told.value)
    with pytest.raises(ClusterError, match='no Dask scheduler answers there'):
        preprocessing.pack(table.iloc[::2], tmp_path / 'pack', cluster=address)
    assert contents(tmp_path / 'pack') == before
