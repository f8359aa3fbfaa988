"""Dropout by image: masks are a function of the key, the dropout and the place, and look independent."""

import numpy as np
import pytest
import torch

from llamagen.backbones.dropout import ImageDropout, kept_values, key_dropouts
from masc.runtime.streams import Purpose, image_keys

# Each statistic below is normal, with this many standard deviations of room: 4,000 comparisons in all, with a false
# alarm in 1,000 runs; the seeds are fixed.
ROOM = 5.2


def keys(count, seed=0, step=0):
    return image_keys(seed, Purpose.DROPOUT, step, count)


def masks(count, values, rate=0.1, dropouts=3, **where):
    """(S, B, V) bool: which values each dropout keeps."""
    model = torch.nn.ModuleList(ImageDropout(rate) for _ in range(dropouts)).train()
    key_dropouts(model, keys(count, **where), torch.device("cpu"))
    return torch.stack([module(torch.ones(count, values)) for module in model]) > 0


def test_an_image_has_its_masks_in_any_batch():
    model, x = ImageDropout(0.5).train(), torch.randn(8, 5, 7)
    key_dropouts(model, keys(8), x.device)
    whole = model(x)
    for part in (slice(0, 1), slice(3, 8)):
        key_dropouts(model, keys(8)[part], x.device)
        assert torch.equal(model(x[part]), whole[part])
    assert torch.equal(whole[whole != 0], 2 * x[whole != 0])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_kept_in_every_lane_image_and_place(rate):
    kept = masks(256, 1024, rate)[0].double()
    spread = (rate * (1 - rate)) ** 0.5
    for axis in ((0, 1), (1,), (0,)):
        count = np.prod([kept.shape[each] for each in axis])
        assert (kept.mean(axis) - (1 - rate)).abs().max() < ROOM * spread / count**0.5
    by_lane = kept.unflatten(1, (-1, 4)).mean((0, 1))
    assert (by_lane - (1 - rate)).abs().max() < ROOM * spread / (256 * 256) ** 0.5


def test_masks_of_other_images_dropouts_steps_seeds_and_places_are_uncorrelated():
    kept = masks(128, 512, 0.5).double() * 2 - 1
    other = {"steps": masks(128, 512, 0.5, step=1), "seeds": masks(128, 512, 0.5, seed=1)}
    pairs = {name: (kept, value.double() * 2 - 1) for name, value in other.items()}
    pairs |= {"dropouts": (kept[0], kept[1]), "images": (kept[:, 1:], kept[:, :-1])}
    pairs |= {f"{lag} apart": (kept[..., lag:], kept[..., :-lag]) for lag in (1, 2, 3, 4, 5, 8, 64)}
    for name, (one, two) in pairs.items():
        assert abs((one * two).mean().item()) < ROOM / one.numel() ** 0.5, name
    # The values of two images agree in half of the places, and so do their differences from a third.
    first, second, third = kept[0, 0], kept[0, 1:64], kept[0, 64:127]
    assert (first * second * third).mean(1).abs().max() < ROOM / 512**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kept_values_are_scaled_as_exactly_as_by_torch(dtype):
    model, x = ImageDropout(0.1).train(), torch.linspace(1, 2, 4096).to(dtype).repeat(8, 1)
    key_dropouts(model, keys(8), x.device)
    found = model(x)
    kept = found != 0
    assert torch.equal(found[kept], (x[kept].float() * (1 / 0.9)).to(dtype))


def test_a_mask_of_an_uneven_number_of_values_is_the_beginning_of_a_longer_one():
    key = torch.tensor([1, -5])
    assert torch.equal(kept_values(key, 13, 0.5), kept_values(key, 16, 0.5)[:, :13])


def test_gradients_pass_where_values_do():
    model, x = ImageDropout(0.5).train(), torch.ones(4, 10, requires_grad=True)
    key_dropouts(model, keys(4), x.device)
    y = model(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_without_keys_and_in_evaluation_it_is_torchs():
    x, model = torch.ones(4, 100), ImageDropout(0.5)
    torch.manual_seed(0)
    one = model.train()(x)
    torch.manual_seed(0)
    assert torch.equal(one, torch.nn.functional.dropout(x, 0.5)) and torch.equal(model.eval()(x), x)
