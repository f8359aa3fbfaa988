"""Streams of random numbers: a stream is a function of a seed, a purpose and an index such as the step.

NumPy seeds a generator with a list of whole numbers, its key. The key of a stream is [seed, purpose, index ...]. Two
purposes therefore draw different numbers from one seed (older exceptions stand at the end of the list), and the number
of processes does not matter. Initial weights and FAISS take the seed itself, in generators of torch and FAISS."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are drawn for. A number never changes, because stored results depend on it."""

    # Training of a model and sampling from it, with an index.
    ORDER = 0  # of the groups in an epoch; index: epoch
    VARIANT = 1  # of each group, and its view; index: step
    CONDITION = 2  # images that are trained without their condition; index: step
    DROPOUT = 3  # keys of the images of a batch; index: step (for dropout that is not by image: step, share)
    LABELS = 4  # of samples; index: image
    SAMPLING = 5  # tokens; index: image
    CAPTION = 6  # of each image; index: step
    TOKENIZER = 7  # batches of the tokenizer's training; index: step
    CONTEXT = 8  # noise in the context of training images; index: step
    SUBSET = 9  # groups of training images that a run sees, or that are held out for tuning; of seed 0
    SHUFFLED_CODES = 10  # the permutation of codes in a control; of seed 0
    LOSS = 11  # first weights of a loss's own networks
    # Evaluation, without an index.
    REFERENCE_VARIANTS = 1000  # one image of every group
    FLOOR_VARIANTS = 1001  # one image of every group, for the floors of sample metrics
    TOKENIZER_TEST = 1002  # images that the test of a tokenizer reads
    REPLACEMENT = 1003  # tokens of the same cluster
    BOOTSTRAP = 1004
    REFERENCE_IMAGES = 1005  # images of a large set that its reference keeps
    COCO_CAPTIONS = 1006
    GRADIENTS = 1007  # training images whose gradients are compared
    OTHER_CAPTIONS = 1008  # of held-out images; of seed 0
    GALLERIES = 1009  # held-out images and captions among which own ones are sought; of seed 0
    # Negative numbers do not enter the key, which is the seed alone. All of these draw the same numbers from one seed,
    # and those of epoch 0 of ORDER too, because NumPy pads a key with zeros. Stored trees and pages depend on them. A
    # new purpose gets a number of its own above.
    SHUFFLED_TREE = -1
    RANDOM_CLUSTERS = -2
    FIRST_CENTRES = -3  # of balanced k-means
    CHECKED_CODES = -4  # entries that are decoded
    REPORTED_IMAGES = -5  # images on the page of a tree
    MAP_POINTS = -6  # tokens on the map of a tree
    MAP_PATCHES = -7  # tokens on that map that are shown as patches
    SCORE_ORDER = -8  # images in the shuffled Inception score


def stream_key(seed: int, purpose: Purpose, *index: int) -> list[int]:
    """The numbers that seed a stream."""
    return [seed, int(purpose), *map(int, index)] if purpose >= 0 else [seed]


def random_stream(seed: int, purpose: Purpose, *index: int) -> np.random.Generator:
    """NumPy's generator at the start of a stream."""
    return np.random.default_rng(stream_key(seed, purpose, *index))


def torch_seed(seed: int, purpose: Purpose, *index: int) -> int:
    """A seed of 64 bits for a generator of torch: two streams share it only by chance."""
    return int(np.random.SeedSequence(stream_key(seed, purpose, *index)).generate_state(1, np.uint64)[0])


def image_keys(seed: int, purpose: Purpose, step: int, count: int) -> np.ndarray:
    """A key for each image of a step's batch, by its place: (count,) uint64."""
    return random_stream(seed, purpose, step).integers(2**64, size=count, dtype=np.uint64)
