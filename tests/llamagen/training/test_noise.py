"""Noise in the context: where, how much, and by what."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from llamagen.training.inputs import load_inputs
from llamagen.training.noise import ContextNoise
from masc.losses.config import CeConfig

BATCH, POSITIONS = 400, 9


def noise_of(small_run, *settings):
    config = small_run("head=flat", *settings)
    inputs = load_inputs(replace(config, loss=CeConfig()) if config.loss.near else config)
    return ContextNoise(config.loss, inputs, 0, BATCH), inputs


def draw(noise, tokens, step=3, part=slice(None), progress=0.0, near=None):
    return noise.draw(tokens[part], step, part, progress, near)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 24, (BATCH, POSITIONS))


@pytest.mark.parametrize(("progress", "rate"), [(0.0, 0.3), (0.25, 0.15), (0.5, 0.0), (0.9, 0.0)])
def test_any_token_replaces_tokens_at_the_rate_that_falls(small_run, tokens, progress, rate):
    noise, _ = noise_of(small_run, "loss=context-noise-any", "loss.noise_until=0.5")
    context = draw(noise, tokens, progress=progress)
    changed = (context != tokens).sum()
    expected = rate * 23 / 24  # a token may replace itself
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], tokens.size, expected) if rate else (0, 0)  # false alarms: 2e-4
    assert low <= changed <= high


def test_members_of_the_same_cluster_replace_tokens_uniformly(small_run, tokens):
    noise, inputs = noise_of(small_run, "loss=context-noise", "loss.noise_rate=1", "loss.num_clusters=6")
    cluster_of = inputs.tree.cut(6).cluster_of
    found = np.concatenate([draw(noise, tokens, step) for step in range(10)])
    assert np.array_equal(cluster_of[found], cluster_of[np.tile(tokens, (10, 1))])
    largest = np.bincount(cluster_of).argmax()
    members = np.flatnonzero(cluster_of == largest)
    counts = np.bincount(found[np.isin(found, members)], minlength=24)[members]
    assert stats.chisquare(counts).pvalue > 1e-4  # the rate of false alarms


def test_the_noise_is_by_step_and_place_alone(small_run, tokens):
    noise, _ = noise_of(small_run, "loss=context-noise-any")
    whole = draw(noise, tokens)
    parts = [draw(noise, tokens, part=slice(start, start + 100)) for start in range(0, BATCH, 100)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, draw(noise, tokens, step=4))


def test_rates_by_image_are_spread_evenly_below_the_rate(small_run, tokens):
    noise, _ = noise_of(small_run, "loss=rear")
    share = (draw(noise, tokens) != tokens).mean()
    # The mean of 400 rates of a uniform number, with positions drawn beside: standard deviation below 0.017.
    assert abs(share - 0.5 * 23 / 24) < 4 * 0.017  # false alarms: 6e-5


def test_near_codes_are_drawn_by_the_targets_of_the_loss(small_run, tokens):
    noise, _ = noise_of(small_run, "loss=soft-encoder", "loss.draw_context=true", "loss.neighbours=3")
    ids = (tokens[..., None] + np.arange(3)) % 24
    distances = np.broadcast_to(np.array([0.1, 0.3, 0.7], np.float32), ids.shape)
    shift = (draw(noise, tokens, near=(ids, distances)) - tokens) % 24
    targets = np.exp(-np.array([0.1, 0.3, 0.7]) / 0.5)
    counts = np.bincount(shift.ravel(), minlength=3)
    assert len(counts) == 3 and stats.chisquare(counts, tokens.size * targets / targets.sum()).pvalue > 1e-4
