"The C array on the interpreter of microcontrollers, where the package tflite-micro is installed."
import re

import numpy as np
import pytest

runtime = pytest.importorskip('tflite_micro.python.tflite_micro.runtime')


def test_array_in_c_answers_on_a_microcontroller_as_elsewhere(tmp_path):
    from kwspot import clip, exported, formats, modelling
    rng = np.random.default_rng(0)
    clips = (rng.standard_normal((20, 16000)) * rng.geometric(0.001, (20, 1))).clip(-32768, 32767).astype(np.int16)
    facts = dict(labels=['no', 'stop', 'yes'], sample_rate=16000, n_samples=16000)
    formats.write_c(formats.Source(modelling.build('tc-resnet-8', 3, waveform=True), facts, clips), tmp_path)
    expected = exported.load_exported(tmp_path).predict(clips)
    rows = (tmp_path / 'kwspot_model.cc').read_text().partition('kwspot_model[')[2]
    interpreter = runtime.Interpreter.from_bytes(bytes(int(number, 16) for number in re.findall(r'\b0x([0-9a-f]{2})\b', rows)), arena_size=2_000_000)
    for waveform, answer in zip(clip.as_waveforms(clips), expected):
        interpreter.set_input(waveform[None], 0)
        interpreter.invoke()
        assert np.abs(interpreter.get_output(0)[0] - answer).max() < 0.05
