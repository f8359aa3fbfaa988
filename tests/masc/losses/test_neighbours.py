"""Near codes against all pairs, and targets of a wanted entropy."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from masc.losses.neighbours import entropy, nearest_codes, targets_of, temperature_of
from masc.runtime.errors import InputError

VECTORS = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)


def test_the_near_codes_are_the_nearest_of_all_others():
    ids, squared = nearest_codes(VECTORS, 7)
    every = cdist(VECTORS.astype(float), VECTORS.astype(float), "sqeuclidean") + np.diag(np.full(50, np.inf))
    assert np.array_equal(ids, every.argsort(1, kind="stable")[:, :7])
    assert np.allclose(squared, np.sort(every, 1)[:, :7], rtol=1e-12)


def test_equal_codes_come_first_and_in_the_order_of_their_numbers():
    vectors = np.repeat(VECTORS[:10], 5, axis=0)
    ids, squared = nearest_codes(vectors, 4)
    assert np.array_equal(squared, np.zeros((50, 4)))
    assert all(set(row) <= set(range(token // 5 * 5, token // 5 * 5 + 5)) - {token} for token, row in enumerate(ids))
    assert (np.diff(ids, axis=1) > 0).all()


def test_there_are_at_most_as_many_near_codes_as_other_codes():
    ids, _ = nearest_codes(VECTORS[:5], 16)
    assert [sorted(row) for row in ids] == [sorted(set(range(5)) - {token}) for token in range(5)]


@pytest.mark.parametrize("wanted", [0.5, 1.0, 2.0])
def test_targets_have_the_wanted_mean_entropy(wanted):
    _, squared = nearest_codes(VECTORS, 16)
    targets = targets_of(squared, temperature_of(squared, wanted))
    assert targets.sum(1) == pytest.approx(1) and entropy(targets).mean() == pytest.approx(wanted, abs=1e-6)
    assert (np.diff(targets, axis=1) <= 0).all()  # the nearest has the most


def test_the_entropy_of_a_certain_and_of_a_uniform_target():
    assert entropy(np.array([1.0, 0, 0])) == 0 and entropy(np.full(8, 1 / 8)) == pytest.approx(np.log(8))


def test_an_entropy_beyond_that_of_uniform_targets_is_refused():
    _, squared = nearest_codes(VECTORS, 16)
    with pytest.raises(InputError, match=r"must lie between .* and 2\.773 nats for 16 near codes, found 3"):
        temperature_of(squared, 3)
