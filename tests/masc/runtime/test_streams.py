"""Streams of random numbers: none is another one, and all are those that earlier results were drawn from."""

import ast

import numpy as np
import pytest

from masc.runtime.streams import Purpose, random_stream, stream_key, torch_seed

# First draws below 2^32 of seed 3 (and index 5, up to CAPTION), recorded before the purposes stood in one list.
FIRST = {
    Purpose.ORDER: 3165309952,
    Purpose.VARIANT: 1163161575,
    Purpose.CONDITION: 1791169156,
    Purpose.DROPOUT: 1680391509,
    Purpose.LABELS: 2058999696,
    Purpose.SAMPLING: 404502470,
    Purpose.CAPTION: 2187593139,
    Purpose.REFERENCE_VARIANTS: 3809746243,
    Purpose.FLOOR_VARIANTS: 363062196,
    Purpose.TOKENIZER_TEST: 2983710627,
    Purpose.REPLACEMENT: 291597514,
    Purpose.BOOTSTRAP: 3098322396,
    Purpose.REFERENCE_IMAGES: 3203108736,
    Purpose.COCO_CAPTIONS: 327026727,
    Purpose.GRADIENTS: 1463140699,
    **{purpose: 3485385464 for purpose in Purpose if purpose < 0},
}


def padded(seed, purpose, *index):
    """A key as NumPy sees it: two keys that differ in zeros at their end give the same stream."""
    key = stream_key(seed, purpose, *index)
    return tuple(key + [0] * (4 - len(key)))


def test_a_key_is_padded_with_zeros():
    draws = [np.random.default_rng(key).integers(2**32) for key in (3, [3], [3, 0], [3, 0, 0, 0])]
    assert len(set(draws)) == 1 and np.random.default_rng([3, 0, 0, 0, 0]).integers(2**32) != draws[0]


@pytest.mark.parametrize("purpose", FIRST, ids=lambda purpose: purpose.name)
def test_streams_are_those_of_earlier_results(purpose):
    index = (5,) if 0 <= purpose <= Purpose.CAPTION else ()
    assert random_stream(3, purpose, *index).integers(2**32) == FIRST[purpose]


def test_the_seed_of_dropout_is_that_of_earlier_results():
    assert [torch_seed(seed, Purpose.DROPOUT, 5, 2) for seed in (0, 3)] == [9884119086418955756, 8925441346973982717]


def test_no_two_purposes_share_a_key():
    """Whatever their indices: the purpose stands second in every key, and is nowhere else the second number."""
    numbered = [purpose for purpose in Purpose if purpose >= 0]
    keys = [padded(0, purpose, *index) for purpose in numbered for index in [(), (0,), (1,), (1, 1), (1003, 7)]]
    assert len(set(keys)) == len(keys) - len(numbered)  # an index of 0 is none
    assert len(set(numbered)) == len(numbered)


def test_streams_of_the_seed_alone_are_these_and_meet_one_other():
    alone = [purpose for purpose in Purpose if purpose < 0]
    assert len(alone) == 8, "give a new purpose a number of its own: it needs no other purpose's numbers"
    assert {padded(3, purpose) for purpose in alone} == {padded(3, Purpose.ORDER, 0)}


def test_streams_are_made_in_one_place(root):
    """Every generator of NumPy in the packages comes from the list of purposes, or follows another project's seed."""
    makers = {"default_rng", "SeedSequence", "RandomState", "Generator", "PCG64", "Philox"}
    files = [
        file for part in ("masc", "tokenizers", "eval", "llamagen", "scripts") for file in (root / part).rglob("*.py")
    ]
    calls = [
        (file.relative_to(root).as_posix(), ast.unparse(node.func))
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
    ]
    makers_in = {file for file, call in calls if call.removeprefix("np.random.") in makers}
    assert makers_in == {"masc/runtime/streams.py", "eval/metrics/inception_score.py"}
