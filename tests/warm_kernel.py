"""Kernels that begin with TensorFlow imported: they are forked from a process that imported it once.

A notebook's kernel spends three to five seconds of processor time on that import; for all notebooks together that is minutes.

    warm_kernel.py serve SOCKET                     the process that forks
    warm_kernel.py SOCKET CONNECTION_FILE           what Jupyter starts as a kernel: asks for a fork and stays as long as it
"""
import gc
import json
import os
import signal
import socket
import sys


def start(address: str, connection_file: str) -> int:
    "Ask for a kernel, and end when it ends; it ends when this process does."
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter sends it before it asks a kernel to end
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        line.sendall(json.dumps({'file': connection_file, 'folder': os.getcwd(), 'environment': dict(os.environ)}).encode() + b'\n')
        return 0 if line.recv(1) in (b'', b'0') else 1


def become_kernel(line: socket.socket, listening: socket.socket) -> None:
    "In the fork: run a kernel with the connection file, folder and environment of who asks."
    import threading
    listening.close()
    asked = json.loads(line.makefile().readline())
    threading.Thread(target=lambda: os._exit(0) if not line.recv(1) else None, daemon=True).start()
    os.chdir(asked['folder'])
    os.environ.clear()
    os.environ.update(asked['environment'])
    os.environ.pop('JPY_PARENT_PID', None)  # of the process that asked
    sys.argv = ['ipykernel_launcher', '-f', asked['file']]
    sys.path[0] = ''
    from ipykernel.kernelapp import IPKernelApp
    application = IPKernelApp.instance()
    application.initialize(sys.argv[1:])
    application.shell.enable_matplotlib('inline')  # what a kernel's environment asks for before the import
    application.start()


def serve(address: str) -> None:
    "Import what is slow to import and needs nothing of the kernel while it is imported, and fork for every line."
    import ipykernel.ipkernel, ipykernel.kernelapp, matplotlib.pyplot, numpy, pandas, scipy.fft, scipy.signal, scipy.stats  # noqa: F401
    import jupyterlab, nbformat, plotly.graph_objects  # noqa: F401  Plotly looks for them when it first draws
    import keras, librosa, numba, tensorflow  # noqa: F401
    librosa.filters, librosa.feature  # noqa: B018  imported when they are first named
    gc.collect()
    gc.freeze()  # else the first collection in each fork goes through all of this, and copies its pages
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address + '.new')
        listening.listen(8)
        os.rename(address + '.new', address)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
        while True:
            line, _ = listening.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try: become_kernel(line, listening)
                finally: os._exit(0)
            line.close()


if __name__ == '__main__':
    if sys.argv[1] == 'serve': serve(sys.argv[2])
    else: sys.exit(start(*sys.argv[1:3]))
