"""What a corpus costs, stage by stage, against the number of its clips: writes nbs/results/scale.json.

    python .ci/scale.py stages N [--stages index audit pack shards] [--keep-mb 1500] index, audit and pack N clips
    python .ci/scale.py copies N                                                   the search for near copies among N fingerprints
    python .ci/scale.py cluster N [--rounds 3] [--corpus FOLDER]                   audit and pack: threads beside Dask, one and two workers
    python .ci/scale.py kills N [--rounds 20]                                      audit and pack while workers are killed

The clips are those of the embedded corpus, each under many names by hard links: no name is twice, and no clip takes room twice. Each
stage runs in a process of its own, on two threads, and tells seconds by the clock, seconds of the processors, and the most memory it
held; each run is one more entry. On a machine that is busy otherwise only the processors' seconds mean something. Threads and Dask take
turns, so that whatever else the machine does falls on both.

The stage `table` is an audit that measures each of the 1,200 recordings once and remembers what it found: what is left is the cost of
the table of all clips, their comparison and judgement.

A million packed clips are 32 GB. Whatever is written of a pack is written whole, but from its beginning on the room is given back to
the system while the rest is written, as soon as there is more of it than --keep-mb: holes of zeros in a file that is as long as ever.
"""
import argparse
import ctypes
import fcntl
import hashlib
import json
import logging
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

RESULT = Path(__file__).resolve().parent.parent / 'nbs' / 'results' / 'scale.json'


def link_corpus(folder, n_clips):
    "N names for the clips of the embedded corpus, by hard links; the folder."
    from kwspot.corpus import NOISE
    from kwspot.synth import example_corpus
    base, whole = folder / 'base', folder / str(n_clips)
    if not base.is_dir(): shutil.copytree(example_corpus(), base)
    if whole.is_dir(): return whole
    made = folder / f'.{n_clips}'
    shutil.rmtree(made, ignore_errors=True)
    clips = sorted(path for path in base.glob('*/*.wav') if path.parent.name != NOISE)
    shutil.copytree(base / NOISE, made / NOISE)
    for word in {path.parent.name for path in clips}: (made / word).mkdir()
    for number in range(n_clips):
        copy, which = divmod(number, len(clips))
        speaker, take = clips[which].stem.split('_nohash_')
        name = f'{(int(speaker, 16) + copy * 0x9E3779B1) % 2**32:08x}_nohash_{take}.wav'
        os.link(clips[which], made / clips[which].parent.name / name)
    return made.rename(whole)


def remembered(measure):
    "`measure` that measures each recording once, whatever its names."
    known = {}
    def once(path):
        number = os.stat(path).st_ino
        if number not in known: known[number] = measure(path)
        return known[number]
    return once


def run_stage(stage, folder, work, n_workers):
    "One stage in this process: what it cost."
    import pandas as pd
    from kwspot import anomaly, corpus, preprocessing, shards
    table = None
    if stage != 'index':
        table = pd.read_parquet(work / 'index.parquet')
        few = table.head(200)
        if stage in ('audit', 'table'): anomaly.audit(few, n_workers=n_workers, processes=False) # compiled loops are loaded before the clock starts
        else: preprocessing.pack(few, work / 'few', n_workers=n_workers)
        few = None
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    if stage == 'index': corpus.index(folder).to_parquet(work / 'index.parquet')
    if stage == 'table': anomaly.measure_file = remembered(anomaly.measure_file)
    if stage in ('audit', 'table'): anomaly.audit(table, n_workers=n_workers, processes=False).to_parquet(work / 'audit.parquet')
    if stage == 'pack': preprocessing.pack(table, work / 'pack', n_workers=n_workers)
    if stage == 'shards': shards.pack_shards(table, work / 'shards', n_workers=n_workers)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    processors = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {'seconds': round(seconds, 3), 'processor_seconds': round(processors, 3), 'peak_mb': round(after.ru_maxrss / 1024),
            'imports_mb': round(before.ru_maxrss / 1024)}


def give_back(work, keep_bytes, done):
    "Make holes in what has been written of packs; `done`: {file: bytes given back}."
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    def punch(path, start, length):
        if length <= 0: return
        with open(path, 'r+b') as file:
            if fallocate(file.fileno(), 3, start, length): raise OSError(ctypes.get_errno(), 'fallocate', str(path))
        done[path] = start + length
    for path in work.glob('.pack-*/audio.npy'): # in order, but for the last few blocks
        begun = done.get(path, 4096)
        if path.stat().st_blocks * 512 > 3 * keep_bytes + 1e9: raise OSError('holes take no room off', str(path))
        punch(path, begun, (path.stat().st_blocks * 512 - keep_bytes) // 4096 * 4096)
    for table in work.glob('shards/shard-*.parquet'): # a shard that is finished
        path = table.with_suffix('.npy')
        if path not in done: punch(path, 4096, (path.stat().st_size - 4096) // 4096 * 4096)


def one_more(n_clips, stage, found, there):
    "The runs of a number of clips with a new one."
    earlier = there.get(n_clips, {})
    return {n_clips: {**earlier, stage: [*earlier.get(stage, []), found]}}


def more(n_clips, sizes, there):
    "The sizes of a number of clips with more of them."
    return {n_clips: {**there.get(n_clips, {}), **sizes}}


def stages(options):
    "Index, audit and pack N clips, each in a process of its own."
    folder, work = link_corpus(options.folder, options.n), options.packs / f'work-{options.n}'
    work.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        for name in ('pack', 'few', 'shards'): shutil.rmtree(work / name, ignore_errors=True)
        program, done = [sys.executable, __file__, 'stage', stage, str(folder), str(work), str(options.n_workers)], {}
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as running:
            try:
                while running.poll() is None:
                    time.sleep(0.2)
                    with suppress(FileNotFoundError): # renamed a moment ago
                        if stage in ('pack', 'shards'): give_back(work, int(options.keep_mb * 1e6), done)
            except OSError:
                running.kill()
                raise
            found = running.stdout.read().splitlines()
        if running.returncode: sys.exit(f'{stage} of {options.n} clips: failed')
        found = json.loads(found[-1])
        print(options.n, stage, found, flush=True)
        keep('stages', partial(one_more, str(options.n), stage, found))
        written = [path for kind in ('index.parquet', 'audit.parquet') for path in work.glob(kind)] + [*work.glob('pack/*')]
        sizes = {path.name: path.stat().st_size for path in written}
        parts = [path.stat().st_size for path in work.glob('shards/shard-*.npy')]
        if parts: sizes.update({'shards': len(parts), 'largest shard': max(parts), 'all shards': sum(parts)})
        keep('bytes', partial(more, str(options.n), sizes))
        for name in ('pack', 'few', 'shards'): shutil.rmtree(work / name, ignore_errors=True)


def copies(options):
    "Near copies among N fingerprints: those of the embedded corpus, each changed at random as another recording would be."
    import numpy as np
    from kwspot import anomaly, corpus, duplicates
    from kwspot.synth import example_corpus
    paths = corpus.index(example_corpus())['path'].tolist()
    _, prints = anomaly.measure_files(paths[:1200])
    prints = prints[np.isfinite(prints).all(1)].astype(np.float32)
    rng = np.random.default_rng(0)
    many = prints[rng.integers(len(prints), size=options.n)]
    for start in range(0, len(many), 10_000): # as far from each other as different recordings are
        part = many[start:start + 10_000]
        part += rng.normal(0, 4, part.shape).astype(np.float32)
    duplicates.neighbours(many[:1000])
    before, start = time.process_time(), time.perf_counter()
    pairs = duplicates.neighbours(many)
    found = {'seconds': round(time.perf_counter() - start, 3), 'processor_seconds': round(time.process_time() - before, 3),
             'pairs': len(pairs), 'peak_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}
    print(options.n, found, flush=True)
    keep('copies', {str(options.n): found})


def clips_of(options):
    "The index of the corpus that is named, or of N clips that are hard links."
    from kwspot import corpus
    return corpus.index(options.corpus or link_corpus(options.folder, options.n))


def busy(client):
    "Seconds of the processors that this process and the workers have used."
    return time.process_time() + (sum(client.run(time.process_time).values()) if client else 0)


def most_memory(client):
    "The most memory in MB that this process and each worker have held."
    return [round(peak / 1024) for peak in (own_peak(), *(client.run(own_peak).values() if client else ()))]


def own_peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def work_on(table, where, client, n_workers):
    "Audit and pack; the digest of all rows and bytes."
    import pandas as pd
    from kwspot import anomaly, preprocessing
    shutil.rmtree(where, ignore_errors=True)
    audited = anomaly.audit(table, cluster=client, n_workers=n_workers, processes=False)
    packed = preprocessing.pack(table, where, cluster=client, n_workers=n_workers)
    digest = hashlib.sha256(pd.util.hash_pandas_object(audited.astype(str) if len(audited) < 10_000 else audited).to_numpy().tobytes())
    for path in sorted(packed.folder.iterdir()):
        with open(path, 'rb') as file: digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()


def cluster(options):
    "Audit and pack on threads of this process and on Dask workers, in turn."
    from distributed import LocalCluster
    from kwspot.cluster import connect
    table, where, digests, memory = clips_of(options), options.packs / 'pack', set(), {}
    logging.getLogger('distributed').setLevel(logging.CRITICAL)
    for n_workers in options.workers:
        quiet = {'dashboard_address': None, 'silence_logs': logging.CRITICAL}
        with LocalCluster(n_workers=n_workers, threads_per_worker=1, **quiet) as local, connect(local.scheduler_address) as client:
            for some in (None, client): work_on(table.head(300), where, some, n_workers) # everybody has imported everything
            for number in range(options.rounds):
                for name, some in ((f'threads-{n_workers}', None), (f'dask-{n_workers}', client)):
                    begun, start = busy(some), time.perf_counter()
                    digests.add(work_on(table, where, some, n_workers))
                    cost = [round(time.perf_counter() - start, 3), round(busy(some) - begun, 3)]
                    print(number, name, cost, flush=True)
                    keep('cluster', partial(one_more, str(len(table)), name, cost))
            memory[f'peak-mb-{n_workers}'] = most_memory(client)
    assert len(digests) == 1, digests
    shutil.rmtree(where)
    keep('cluster', partial(more, str(len(table)), {'same_bytes': True, **memory}))


def kills(options):
    "Audit and pack while one worker, drawn by lot, is killed at a moment drawn by lot; as many times as are asked for."
    from distributed import LocalCluster
    from kwspot import corpus
    from kwspot.cluster import connect
    table, where, rng = corpus.index(link_corpus(options.folder, options.n)), options.packs / 'pack', random.Random(options.seed)
    logging.getLogger('distributed').setLevel(logging.CRITICAL)
    done = 0
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL) as local, \
            connect(local.scheduler_address) as client:
        wanted = work_on(table, where, None, 2)
        work_on(table, where, client, 2)
        start = time.perf_counter()
        assert work_on(table, where, client, 2) == wanted
        undisturbed = time.perf_counter() - start
        while done < options.rounds:
            local.scale(2) # a nanny whose worker dies while it starts gives up
            client.wait_for_workers(2)
            time.sleep(1)
            moment, victim = rng.uniform(0, 0.8 * undisturbed), rng.choice(sorted(client.run(os.getpid).values()))
            killer = threading.Timer(moment, os.kill, (victim, signal.SIGKILL))
            start = time.perf_counter()
            killer.start()
            same = work_on(table, where, client, 2) == wanted
            seconds = time.perf_counter() - start
            killer.cancel()
            if moment > seconds: continue # the work was done before
            done += 1
            row = {'killed_after_s': round(moment, 3), 'seconds': round(seconds, 3), 'same_bytes': same,
                   'undisturbed_s': round(undisturbed, 3), 'n_clips': len(table)}
            print(done, row, flush=True)
            keep('kills', partial(one_more_kill, row))
    shutil.rmtree(where)


def one_more_kill(row, there):
    "The rounds with a new one."
    return {'rounds': [*there.get('rounds', []), row]}


@contextmanager
def alone():
    "Nobody else changes the file in the block."
    with open(Path(tempfile.gettempdir()) / 'kwspot-scale.lock', 'w', encoding='utf-8') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def keep(name, found):
    "Put figures into the file: `found` is a dict, or makes one of what is there."
    with alone():
        whole = json.loads(RESULT.read_text(encoding='utf-8')) if RESULT.is_file() else {}
        there = whole.get(name, {})
        whole[name] = {**there, **(found(there) if callable(found) else found)}
        whole['machine'] = {'cores': os.cpu_count(), 'python': platform.python_version(), 'system': platform.system()}
        RESULT.write_text(json.dumps(whole, indent=1, sort_keys=True) + '\n', encoding='utf-8')


def main():
    if sys.argv[1] == 'stage':
        print(json.dumps(run_stage(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument('what', choices=['stages', 'copies', 'cluster', 'kills'])
    parser.add_argument('n', type=int)
    parser.add_argument('--corpus', type=Path, help='for cluster: this corpus instead of hard links')
    parser.add_argument('--folder', type=Path, default=Path('/dev/shm/kwspot-scale'))
    parser.add_argument('--packs', type=Path, default=Path('/dev/shm/kwspot-scale/work'))
    parser.add_argument('--keep-mb', type=float, default=1500)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--n-workers', type=int, default=2)
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--stages', nargs='+', default=['index', 'audit', 'pack'])
    options = parser.parse_args()
    options.packs.mkdir(parents=True, exist_ok=True)
    {'stages': stages, 'copies': copies, 'cluster': cluster, 'kills': kills}[options.what](options)


if __name__ == '__main__': main()
