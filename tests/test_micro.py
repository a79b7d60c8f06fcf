"The C arrays on the interpreter of microcontrollers, where the package tflite-micro is installed."
import re

import numpy as np
import pytest

runtime = pytest.importorskip('tflite_micro.python.tflite_micro.runtime')


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((20, 16000)) * rng.geometric(0.001, (20, 1))).clip(-32768, 32767).astype(np.int16)


facts = dict(labels=['no', 'stop', 'yes'], sample_rate=16000, n_samples=16000)


def microcontroller(folder):
    rows = (folder / 'kwspot_model.cc').read_text().partition('kwspot_model[')[2]
    content = bytes(int(number, 16) for number in re.findall(r'\b0x([0-9a-f]{2})\b', rows))
    return runtime.Interpreter.from_bytes(content, arena_size=2_000_000)


def test_array_in_c_answers_on_a_microcontroller_as_elsewhere(tmp_path, clips):
    from kwspot import clip, exported, formats, modelling
    formats.write_c(formats.Source(modelling.build('tc-resnet-8', 3, waveform=True), facts, clips), tmp_path)
    expected = exported.load_exported(tmp_path).predict(clips)
    interpreter = microcontroller(tmp_path)
    for waveform, answer in zip(clip.as_waveforms(clips), expected):
        interpreter.set_input(waveform[None], 0)
        interpreter.invoke()
        assert np.abs(interpreter.get_output(0)[0] - answer).max() < 0.05


def test_steps_in_c_answer_on_a_microcontroller_as_elsewhere(tmp_path, clips):
    from kwspot import clip, formats, modelling, streaming
    source = formats.Source(modelling.build('kwspot-s', 3, waveform=True, causal=True), facts, clips)
    formats.write_c_stream(source, tmp_path)
    header = (tmp_path / 'kwspot_model.h').read_text()
    at = {name: int(number) for name, number in re.findall(r'#define KWSPOT_(\w+) (\d+)', header)}
    sound = np.concatenate([np.zeros(at['N_EARLY'], np.float32), clip.as_waveforms(clips[:4]).ravel()])
    interpreter, state, answers = microcontroller(tmp_path), np.zeros((1, at['N_STATE']), np.float32), []
    for start in range(0, len(sound) - at['N_INPUT'] + 1, at['HOP']):
        interpreter.set_input(sound[None, start:start + at['N_INPUT']], at['SAMPLES_IN'])
        interpreter.set_input(state, at['STATE_IN'])
        interpreter.invoke()
        answers.append(interpreter.get_output(at['PROBABILITIES_OUT'])[0])
        state = interpreter.get_output(at['STATE_OUT'])
    expected = streaming.answers_to(streaming.open_listener(tmp_path), clip.as_waveforms(clips[:4]).ravel()).probabilities
    assert np.abs(np.array(answers) - expected).max() < 0.05
