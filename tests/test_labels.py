"Confident learning beside its authors' own implementation."
import numpy as np
import pytest

from kwspot.labels import confident_joint, confident_words, doubts

filters = pytest.importorskip('cleanlab.filter', reason='needs cleanlab')
counts = pytest.importorskip('cleanlab.count', reason='needs cleanlab')


@pytest.fixture(params=[(3, 400, .5), (10, 3000, 1.), (30, 6000, 2.)], ids=lambda shape: f'{shape[0]} words')
def answers(request):
    "Probabilities of a model that is mostly right, and labels of which a tenth is wrong."
    n_classes, n, sharpness = request.param
    rng = np.random.default_rng(n_classes)
    truth = rng.integers(0, n_classes, n)
    scores = rng.normal(0, 1, (n, n_classes))
    scores[np.arange(n), truth] += 2.5
    probabilities = np.exp(sharpness * scores)
    given = np.where(rng.random(n) < .1, rng.integers(0, n_classes, n), truth)
    return probabilities / probabilities.sum(1, keepdims=True), given


def test_the_same_clips_are_doubted(answers):
    probabilities, given = answers
    theirs = filters.find_label_issues(given, probabilities, filter_by='confident_learning', min_examples_per_class=0, n_jobs=1)
    ours = doubts(probabilities, given)['confident']
    assert theirs.sum() > len(given) / 50
    assert (ours == theirs).mean() > .999  # where two words reach their thresholds and a third is likelier, the two part


def test_the_joint_is_the_same(answers):
    probabilities, given = answers
    theirs = counts.compute_confident_joint(given, probabilities, calibrate=True)
    ours = confident_joint(given, confident_words(probabilities, given), probabilities.shape[1])
    assert np.abs(ours.sum(1) - theirs.sum(1)).max() < 1e-6
    assert np.abs(ours - theirs).max() < 2  # cleanlab rounds each number to whole clips
