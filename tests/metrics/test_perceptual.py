"""LPIPS against the lpips package set up as its own README does, on a random backbone."""

import lpips
import numpy as np
import pytest
import torch
import torchvision
from messages import PlainFormatter
from user_errors import tells

from masc.runtime.errors import InputError
from masc.runtime.files import hash_file
from metrics.perceptual import BACKBONES, load_lpips, lpips_path


@pytest.fixture(scope="module", params=list(BACKBONES))
def seeded(request, tmp_path_factory):
    """A folder with a random backbone under its published name, and torchvision's network that holds it."""
    folder = tmp_path_factory.mktemp("weights")
    build = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(weights=None)
    network.classifier = torch.nn.Identity()  # not read, and most of the file
    path = lpips_path(folder, request.param)
    torch.save(network.state_dict(), path)
    return request.param, folder, network, hash_file(path)


@pytest.fixture(scope="module")
def model(seeded):
    name, folder, _, sha256 = seeded
    return load_lpips(folder, backbone=name, sha256=sha256)


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def test_lpips_equals_the_packages(seeded, model, monkeypatch):
    name, _, network, _ = seeded
    a, b = images(0), images(1)
    found = model(a, b)
    monkeypatch.setattr(
        torchvision.models, network.__class__.__name__.lower().replace("vgg", "vgg16"), lambda **_: network
    )
    theirs = lpips.LPIPS(net=name, verbose=False)
    scaled = [torch.cat([lpips.im2tensor(image) for image in x]) for x in (a, b)]  # im2tensor gives [-1, 1]
    with torch.no_grad():
        expected = theirs(*scaled).flatten().numpy()
    assert found.shape == (3,) and found.min() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_lpips_of_equal_images_is_zero_and_symmetric(seeded, model):
    name, _, _, sha256 = seeded
    a, b = images(0), images(1)
    assert np.array_equal(model(a, a), np.zeros(3))
    np.testing.assert_allclose(model(a, b), model(b, a), rtol=1e-5)
    assert model.protocol == {"version": "0.1", "backbone": name, "backbone_sha256": sha256}


def test_a_backbone_that_is_not_there_is_left_out_with_one_warning(tmp_path, caplog):
    assert load_lpips(tmp_path) is None
    (record,) = caplog.records
    assert "make weights NAME=lpips-alexnet" in PlainFormatter().format(record)


def test_another_or_a_broken_backbone_is_refused(seeded, tmp_path):
    name, folder, _, _ = seeded
    with tells(rf"expected {BACKBONES[name].sha256}\.\.\..*make weights NAME=lpips"):
        load_lpips(folder, backbone=name)
    path = lpips_path(tmp_path, name)
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="does not hold torchvision's weights"):
        load_lpips(tmp_path, backbone=name, sha256=hash_file(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="does not hold torchvision's weights"):
        load_lpips(tmp_path, backbone=name, sha256=hash_file(path))


def test_nothing_is_unpickled_that_is_not_a_tensor(tmp_path):
    path = lpips_path(tmp_path)
    torch.save({"features.0.weight": pytest.raises}, path)
    with pytest.raises(InputError, match="does not hold torchvision's weights"):
        load_lpips(tmp_path, sha256=hash_file(path))
