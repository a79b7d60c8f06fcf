"""The page of an audit in a browser: what it saves is what `kwspot audit --apply` takes, and it says beside the card what it refuses.

Needs playwright (in the dev extra) and Chromium, like `test_jupyterlab.py`, and is skipped without them.
"""
import shutil
from pathlib import Path

import numpy as np
import pytest

from kwspot.anomaly import audit
from kwspot.corpus import CorpusError, index, pcm_wav
from kwspot.decisions import check_decision, read_decisions, write_clean
from kwspot.review import write_findings

playwright = pytest.importorskip('playwright.sync_api', reason='the browser test needs playwright: pip install ".[dev]"')
clip, other = 'yes/0a7c2a8d_nohash_0.wav', 'no/1b9e6f43_nohash_0.wav'


@pytest.fixture(scope='module')
def audited(tmp_path_factory):
    "Two words with the same half second of noise: short, a copy, and without a word; the first is doubted."
    folder, samples = tmp_path_factory.mktemp('corpus'), np.random.default_rng(0).normal(0, 2000, 8000).astype(np.int16)
    for name in (clip, other):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(pcm_wav(samples))
    table = audit(index(folder))
    doubted = table['word'] == 'yes'
    return table.assign(likely_word='one', label_score=.997, label_doubts=2, doubted_by='loss, neighbours', wrong_label=doubted,
                        findings=table['findings'] + np.where(doubted, ', wrong_label', ''))


@pytest.fixture(scope='module')
def page(audited, tmp_path_factory):
    place = tmp_path_factory.mktemp('page') / 'audit.html'
    write_findings(audited, place)
    with playwright.sync_playwright() as play:
        names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
        path = next(filter(None, map(shutil.which, names)), play.chromium.executable_path)
        if not Path(path).exists(): pytest.skip('no Chromium on this machine: apt-get install chromium')
        browser = play.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu'])
        view, view.said = browser.new_page(viewport=dict(width=1100, height=1400)), []
        view.on('pageerror', lambda error: view.said.append(str(error)))
        view.goto(place.as_uri())
        yield view
        assert view.said == []
        browser.close()


def cards(page, name): return page.locator(f'[data-clip="{name}"]')
def count(page): return page.locator('#count').inner_text()


def save(page, place):
    with page.expect_download(timeout=10_000) as download: page.locator('#save').click()
    download.value.save_as(place)
    return read_decisions(place)


def test_cards_of_one_clip_agree(page, audited, tmp_path):
    "A decision is one of the clip, whichever card it was made at; the likely word stands in the box."
    mine = cards(page, clip)
    assert mine.count() >= 3 # one of each finding
    mine.nth(0).locator('select').select_option('relabel')
    assert {mine.nth(i).locator('select').input_value() for i in range(mine.count())} == {'relabel'}
    assert {mine.nth(i).locator('input').input_value() for i in range(mine.count())} == {'one'}
    mine.nth(1).locator('input').fill('two')
    assert mine.nth(0).locator('input').input_value() == 'two' and count(page) == '1'
    cards(page, other).nth(0).locator('select').select_option('trim')
    cards(page, other).nth(0).locator('input').fill(' 0.1 - 0.4')
    saved = save(page, tmp_path / 'decisions.csv')
    assert set(zip(saved['clip'], saved['action'], saved['value'])) == {(clip, 'relabel', 'two'), (other, 'trim', '0.1 - 0.4')}
    assert len(write_clean(audited, saved, tmp_path / 'clean', progress=False)) == 2
    for name in (clip, other): cards(page, name).nth(0).locator('select').select_option('')
    assert count(page) == '0'


@pytest.mark.parametrize('action, value', [
    ('relabel', ''), ('relabel', '  '), ('relabel', 'a/b'), ('relabel', '.hidden'), ('relabel', 'what?'), ('relabel', 'drei vier'),
    ('trim', ''), ('trim', '0.3'), ('trim', '0.4-0.1'), ('trim', '0.1-0.4s'), ('trim', '.1-.4'), ('trim', '0.-0.4'), ('trim', '0.1-9')])
def test_page_refuses_what_kwspot_refuses(page, tmp_path, action, value):
    "What cannot be applied is said beside the card, and is not saved."
    try: check_decision(clip, action, value.strip())
    except CorpusError: fine = False
    else: fine = True
    card = cards(page, clip).nth(0)
    card.locator('select').select_option(action)
    card.locator('input').fill(value)
    assert (card.locator('[role=alert]').inner_text() == '') == fine == (count(page) == '1')
    assert (page.locator('#unfinished').inner_text() == '') == fine
    if fine: assert save(page, tmp_path / 'decisions.csv')['value'].tolist() == [value.strip()]
    else:
        page.locator('#save').click()
        assert card.locator('input').evaluate('box => box === document.activeElement') # led to what is missing
    card.locator('select').select_option('')


def test_nothing_stays(page):
    "A trim behind the end of the clip would be refused when it is applied."
    card = cards(page, clip).nth(0)
    card.locator('select').select_option('trim')
    card.locator('input').fill('0.6-0.9')
    assert 'lasts 0.50 s' in card.locator('[role=alert]').inner_text()
    card.locator('select').select_option('')


def test_copies_can_be_heard(page):
    "The card of a copy names the other and has a player for it, and every player has a sound."
    players = page.locator('[data-clip] audio')
    lengths = players.evaluate_all('''all => Promise.all(all.map(one => new Promise(done => {
        one.onloadedmetadata = () => done(one.duration); one.onerror = () => done(0); one.preload = 'auto'; one.load(); })))''')
    assert min(lengths) == pytest.approx(.5, abs=.01)
    copy = page.locator('#duplicate ~ .cards').first.locator('.card').first
    assert copy.locator('audio').count() == 2 and {clip, other} == set(copy.locator('b').all_inner_texts())
