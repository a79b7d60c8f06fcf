"""Training throughput of every architecture beside the same layers in PyTorch: writes nbs/results/throughput.json.

    python .ci/throughput.py --torch /some/venv/bin/python [NAME ...] [--rounds 11] [--threads 1 2] [--batch 128]

PyTorch is needed by the interpreter named with --torch only. Each framework trains in a process of its own, on the same number of threads,
and they take turns, a short stretch of steps each, so that whatever else the machine does falls on both. A step is forward, backward
and Adam on ready-made features, without augmentation; kwspot's is `training.training_step`, PyTorch's is eager, channels first or
channels last, the faster of the two. The figure is the median over the rounds of kwspot's clips per second divided by PyTorch's, with
its quartiles. On one thread, a step's time is that of the processor, which other processes hardly change; on two, a stretch counts by
its fastest step by the clock. On a machine that is busy otherwise, PyTorch's threads wait for each other where TensorFlow's do not, so
two threads tell something only on a quiet one. Names that are not given keep the figures that the file has.

    python .ci/throughput.py --where [NAME ...]

adds for each architecture which kinds of operation the time of kwspot's step goes to, by TensorFlow's profiler, on one thread.
"""
import argparse
import collections
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).resolve().parent.parent / 'nbs' / 'results' / 'throughput.json'
N_CLASSES = 12
FORMATS = 'contiguous_format', 'channels_last'
SEQUENCES = 'tc-resnet', 'matchboxnet', 'kwt'  # no pictures inside, so channels last changes nothing
KINDS = {'depthwise convolutions': 'Depthwise', 'other convolutions': 'Conv', 'matrix products': 'MatMul', 'batch normalisation': 'BatchNorm',
         'moving numbers about': 'Transpose Pad Slice Concat Reshape BroadcastTo Tile Copy Pack Split Gather ToTf'}


def threads_of_tensorflow(threads):
    "What has to be said before TensorFlow does anything."
    from kwspot.quiet_tensorflow import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def serve_kwspot(name, batch, option):
    "A function that takes a training step, and what is known about the network."
    from kwspot import modelling, training
    import keras, numpy, tensorflow as tf
    learner = training.new_learner(training.Recipe('throughput', model=name, batch_size=batch), tuple(map(str, range(N_CLASSES))))
    network, rng = learner.network, numpy.random.default_rng(0)
    features = tf.constant(rng.normal(size=(batch, *network.input_shape[1:])), tf.float32)
    classes = tf.constant(rng.integers(N_CLASSES, size=batch), tf.int32)
    given = features, tf.one_hot(classes, N_CLASSES), classes, tf.constant(1e-3)
    step = training.training_step(learner)
    return lambda: float(step(*given)[0]), {'parameters': network.count_params(), 'shape': network.input_shape[1:3],
                   'multiply_adds': int(modelling.layers(network).multiply_adds.sum()),
                   'versions': {'tensorflow': tf.__version__, 'keras': keras.__version__}}


def serve_torch(name, batch, threads, option, shape):
    "The same in PyTorch; `option` names the memory format."
    import torch
    import torch_networks
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = torch_networks.build(name, N_CLASSES, shape).to(memory_format=getattr(torch, option))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-7)
    features = torch.randn(batch, 1, *shape).to(memory_format=getattr(torch, option))
    classes = torch.randint(N_CLASSES, (batch,))

    def step():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(features), classes)
        loss.backward()
        optimiser.step()
        return loss.item()
    return step, {'parameters': torch_networks.count(network), 'versions': {'torch': torch.__version__}}


def serve(framework, name, batch, threads, option, shape):
    "Answer each number of steps on standard input with the seconds each took, by the clock and of the processors."
    if framework == 'kwspot':
        threads_of_tensorflow(threads)
        step, facts = serve_kwspot(name, batch, option)
    else: step, facts = serve_torch(name, batch, threads, option, shape)
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter(), time.process_time()
            loss = step()
            times.append([time.perf_counter() - start[0], time.process_time() - start[1]])
        if not math.isfinite(loss): sys.exit(f'{framework} {name}: the loss is {loss}')
        print(json.dumps(times), flush=True)


class Server:
    "A process that trains when it is asked to."
    def __init__(self, python, framework, name, batch, threads, option, shape=(0, 0)):
        words = [python, __file__, '--serve', framework, name, '--batch', batch, '--threads', threads, '--option', option,
                 '--shape', *shape]
        settings = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'TF_CPP_MIN_LOG_LEVEL': '3'}
        self.process = subprocess.Popen(list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings)
        self.facts = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line: sys.exit('a training process ended before its time; its message stands above')
        return json.loads(line)

    def steps(self, n):
        "For each of n steps its seconds, by the clock and of the processors."
        print(n, file=self.process.stdin, flush=True)
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(times, theirs):
    "The median over the rounds of kwspot's speed divided by another's, with its quartiles."
    ratios = [other / own for own, other in zip(times['kwspot'], times[theirs])]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {'ratio': middle, 'quartiles': [low, high], 'torch_format': theirs.split('_format')[0]}


def race(name, threads, given):
    "kwspot and PyTorch in turn on one architecture: facts of the network, the versions, the comparison."
    ours = Server(sys.executable, 'kwspot', name, given.batch, threads, 'own')
    shape = ours.facts['shape']
    formats = FORMATS[:1] if name.startswith(SEQUENCES) else FORMATS
    servers = {'kwspot': ours, **{option: Server(given.torch, 'torch', name, given.batch, threads, option, shape) for option in formats}}
    counts = {key: server.facts['parameters'] for key, server in servers.items()}
    if len(set(counts.values())) > 1: sys.exit(f'{name}: not the same layers, by their parameters: {counts}')
    typical, which = (statistics.median, 1) if threads == 1 else (min, 0)  # of the processor; by the clock
    lengths, times = {}, {key: [] for key in servers}
    for key, server in servers.items():
        server.steps(1)
        lengths[key] = max(1, round(given.seconds / min(wall for wall, _ in server.steps(2))))
    for number in range(given.rounds):
        for key in sorted(servers, reverse=number % 2 == 1):
            times[key].append(typical(step[which] for step in servers[key].steps(lengths[key])))
    for server in servers.values(): server.close()
    best = min(formats, key=lambda key: statistics.median(times[key]))
    print(f'{name:20} threads {threads}  ms', {key: f'{1e3 * statistics.median(each):.1f}' for key, each in times.items()}, flush=True)
    facts = {key: ours.facts[key] for key in ('parameters', 'multiply_adds')}
    return facts, {**ours.facts['versions'], **servers[best].facts['versions']}, compare(times, best)


def rounded(value):
    "Three digits are more than the rounds can tell."
    if isinstance(value, float): return float(f'{value:.3g}')
    if isinstance(value, dict): return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def kind_of(operation):
    "Of `KINDS`, by the name of the operation's kernel."
    for kind, words in KINDS.items():
        if any(word in operation for word in words.split()): return kind
    return 'the rest, number by number'


def shares(step, n=5):
    "Which share of the time of some steps each kind of operation takes, the largest first."
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2
    for _ in range(2): step()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder, tf.profiler.experimental.ProfilerOptions(host_tracer_level=3, python_tracer_level=0))
        for _ in range(n): step()
        tf.profiler.experimental.stop()
        space = xplane_pb2.XSpace.FromString(next(Path(folder).rglob('*.xplane.pb')).read_bytes())
    spent = collections.Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            node, colon, operation = plane.event_metadata[event.metadata_id].name.rpartition(':')  # node:Operation
            if colon and operation.isidentifier() and not node.endswith(':') and ' ' not in node: spent[kind_of(operation)] += event.duration_ps
    return {kind: time / spent.total() for kind, time in spent.most_common()}


def where(given):
    "Add the shares of kinds of operation to the file."
    threads_of_tensorflow(1)
    result = json.loads(given.out.read_text(encoding='utf-8'))
    for name in given.names or result['architectures']:
        step, _ = serve_kwspot(name, given.batch, 'own')
        result['architectures'][name]['where'] = rounded(shares(step))
        print(f'{name:20}', json.dumps(result['architectures'][name]['where']), flush=True)
        write(result, given.out)


def registered():
    "The names of all architectures."
    from kwspot import modelling
    return list(modelling.models().index)


def measure(given):
    "Race the architectures asked for, and write the file after each."
    result = json.loads(given.out.read_text(encoding='utf-8')) if given.out.exists() else {'architectures': {}}
    for name, threads in itertools.product(given.names or registered(), given.threads):
        facts, versions, row = race(name, threads, given)
        known_rows = result['architectures'].get(name, {})
        result['architectures'][name] = {**known_rows, **facts, f'threads_{threads}': rounded({**row, 'rounds': given.rounds})}
        result.update(versions={'python': platform.python_version(), **versions}, batch_size=given.batch, n_classes=N_CLASSES,
                      machine=platform.machine())
        result['architectures'] = dict(sorted(result['architectures'].items(), key=lambda item: item[1]['parameters']))
        print(f'{name:20}', json.dumps(rounded(row)), flush=True)
        write(result, given.out)


def write(result, path):
    "The file, whole."
    path.with_suffix('.part').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    os.replace(path.with_suffix('.part'), path)


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME')
    parser.add_argument('--torch', help='a Python that has PyTorch')
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--seconds', type=float, default=0.7, help='of a stretch of steps')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--out', type=Path, default=RESULT)
    parser.add_argument('--where', action='store_true', help='profile instead of racing')
    parser.add_argument('--serve', choices=('kwspot', 'torch'), help=argparse.SUPPRESS)
    parser.add_argument('--option', default='', help=argparse.SUPPRESS)
    parser.add_argument('--shape', nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve: serve(given.serve, given.names[0], given.batch, given.threads[0], given.option, given.shape)
    elif given.where: where(given)
    elif given.torch: measure(given)
    else: parser.error('--torch is needed')


if __name__ == '__main__': main()
