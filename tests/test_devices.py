"""A network with copies on several devices learns as on one; TensorFlow must be told of them before it begins."""
import subprocess
import sys

import numpy as np

PROGRAM = """
import numpy as np
from kwspot import training
import tensorflow as tf
gpus = tf.config.list_physical_devices('GPU')
device = (gpus or tf.config.list_physical_devices('CPU'))[0]
half = tf.config.LogicalDeviceConfiguration(memory_limit=2048 if gpus else None)
tf.config.set_logical_device_configuration(device, [half] * 2)
rng = np.random.default_rng(0)
clips = [tf.constant(rng.integers(-3000, 3000, (17, 16000)), tf.int16) for _ in range(3)]
classes = [tf.constant(rng.integers(0, 3, 17), tf.int32) for _ in range(3)]
options = {'clip_norm': 0.5, 'ema': 0.9, 'augment': {'gain': {}, 'masks': {}}, 'mixed_precision': 'off',
           'network': {'dropout': 0.0}} # whose masks are not those of one
for model in ('tc-resnet-8', 'kwspot-s'): # one after the other in one process, as a pupil after its teachers
    recipe = training.Recipe('devices', model=model, **options)
    for devices in (1, 2):
        learner = training.new_learner(recipe, ('no', 'other', 'yes'), devices=devices)
        hear, step = training.hearing(learner, 16000), training.training_step(learner)
        losses = [float(step(*hear(*batch), tf.constant(1e-4))[0]) for batch in zip(clips, classes)]
        print(*losses, sum(float(np.abs(weight).sum()) for weight in learner.judged.get_weights()))
"""


def test_two_devices_learn_as_one():
    ran = subprocess.run([sys.executable, '-c', PROGRAM], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = [np.array(line.split(), float) for line in ran.stdout.splitlines()]
    assert len(lines) == 4
    for one, two in (lines[:2], lines[2:]):
        assert np.allclose(two[:-1], one[:-1], atol=2e-3)
        assert np.isclose(two[-1], one[-1], rtol=1e-3)
