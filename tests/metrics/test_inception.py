"""The Inception network against torch-fidelity, pytorch-fid, TensorFlow's recorded outputs, and its own laws."""

import json

import numpy as np
import pytest
import torch
from inception_weights import seeded_state
from user_errors import tells

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file
from metrics.frechet import frechet_distance
from metrics.inception import FILE, exact_arithmetic, load_inception
from metrics.inception_score import form_chunks, inception_score
from metrics.precision_recall import precision_recall
from metrics.resize import RESIZES, half_pixel_bilinear, pil_bicubic, tf1_bilinear


def random_images(count, size=64, seed=3):
    """Smooth random images (B, 3, S, S) uint8, other than the golden ones."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.integers(0, 256, (count, 3, 6, 6)).astype(np.float32))
    noise = torch.from_numpy(rng.normal(0, 8, (count, 3, size, size)).astype(np.float32))
    return (torch.nn.functional.interpolate(small, size=(size, size), mode="bicubic") + noise).clamp(0, 255).byte()


def features(model, images, resize="tf1-bilinear"):
    with exact_arithmetic():
        return [part.numpy() for part in model(RESIZES[resize](images, 299))]


@pytest.fixture(scope="module")
def golden(root):
    folder = root.parent / "shared" / "golden" / "eval"
    if not folder.exists():
        pytest.skip(f"no golden data at {folder}")
    stored = np.load(folder / "tf_ops_activations.npz")
    sets = {key: np.load(folder / f"images_{name}.npz")["arr_0"] for key, name in (("ref", "ref_A"), ("gen", "gen_B"))}
    return json.loads((folder / "expected.json").read_text()), stored, sets


@pytest.fixture(scope="module")
def fidelity(seeded_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=seeded_weights
    )


def test_the_seeded_weights_are_those_of_the_golden_data():
    import hashlib

    state, digest = seeded_state(), hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].numpy().tobytes())
    assert digest.hexdigest() == "6b765405a100811c437e600f8213768efb12c17027cfea5045cba2df0495b543"


def test_features_equal_tensorflows(inception, golden):
    _, stored, sets = golden
    for key in ("ref", "gen"):
        images = torch.from_numpy(sets[key][:4]).permute(0, 3, 1, 2)
        pooled, spatial = features(inception, images)
        for found, name in ((pooled, f"{key}_pool"), (spatial[:, :64], f"{key}_sp64")):
            expected = stored[name][:4]
            assert np.abs(found - expected[:, : found.shape[1]]).max() < 5e-6 * np.abs(expected).max()


def test_frechet_distance_of_tensorflows_features(golden):
    expected, stored, _ = golden
    for kind, name, tolerance in (("pool", "FID", 2e-3), ("sp64", "sFID", 1e-4)):
        for width in (32, 64):
            found = frechet_distance(stored[f"gen_{kind}"][:, :width], stored[f"ref_{kind}"][:, :width])
            truth = expected[f"{name}_first{width}"]["tfops"]["nuclear_norm_f64"]
            assert found == pytest.approx(truth, abs=tolerance / 5)
            assert found == pytest.approx(expected["adm_real_code"][f"{name}_first{width}"], abs=tolerance)
    whole = frechet_distance(stored["gen_pool"], stored["ref_pool"])
    assert whole == pytest.approx(expected["FID_2048"]["tfops_nuclear"], rel=1e-9)


def test_precision_recall_and_inception_score_of_tensorflows_features(golden, inception):
    expected, stored, _ = golden
    adm = expected["adm_real_code"]
    assert precision_recall(stored["gen_pool"], stored["ref_pool"]) == (adm["precision"], adm["recall"])
    weight = inception.fc.weight.numpy()
    for key, name in (("gen", "gen"), ("ref", "ref")):
        logits = stored[f"{key}_pool"] @ weight.T
        whole = inception_score(logits, form_chunks("adm", len(logits)))
        assert whole == pytest.approx(adm[f"IS_{name}_split5000"], abs=1e-6)
        for size in (16, 20):
            chunks = [np.arange(start, min(start + size, len(logits))) for start in range(0, len(logits), size)]
            if f"IS_{name}_split{size}" in adm:
                assert inception_score(logits, chunks) == pytest.approx(adm[f"IS_{name}_split{size}"], abs=1e-6)
        shuffled = inception_score(logits, form_chunks("torch-fidelity", len(logits)))
        found = expected[f"IS_{name}_tfops"]["splits10_shuffle2020"]["inception_score_mean"]
        assert shuffled == pytest.approx(found, abs=1e-6)


def test_synthetic_features_give_the_golden_numbers(golden):
    expected = golden[0]
    for name, tolerance in (("synA_600x500x64", 1e-6), ("synB_300x260x2048", 1e-3)):
        n1, n2, d = map(int, name.partition("_")[2].split("x"))
        reference = np.random.RandomState(77).standard_normal((n1, d)).astype(np.float32)
        generated = (0.8 * np.random.RandomState(78).standard_normal((n2, d)) + 0.15).astype(np.float32)
        truth = expected[name]["nuclear_norm_f64"]
        assert frechet_distance(generated, reference) == pytest.approx(truth, abs=tolerance)
        adm = expected["adm_real_code"][name]
        assert precision_recall(generated, reference) == (pytest.approx(adm["precision"]), pytest.approx(adm["recall"]))


@pytest.mark.slow
def test_the_whole_golden_evaluation(inception, golden):
    expected, _, sets = golden
    found = {key: features(inception, torch.from_numpy(images).permute(0, 3, 1, 2)) for key, images in sets.items()}
    (gen_pool, gen_spatial), (ref_pool, ref_spatial) = found["gen"], found["ref"]
    assert frechet_distance(gen_pool, ref_pool) == pytest.approx(10444.98, abs=0.05)
    assert frechet_distance(gen_spatial, ref_spatial) == pytest.approx(9664.28, abs=0.03)
    assert precision_recall(gen_pool, ref_pool) == (0.95, 0.9375)
    assert precision_recall(gen_spatial, ref_spatial) == (0.625, 0.75)
    score = inception_score(gen_pool @ inception.fc.weight.numpy().T)
    assert score == pytest.approx(expected["adm_real_code"]["IS_gen_split5000"], abs=1e-6)


@pytest.mark.slow
def test_torch_fidelity_agrees_live(inception, fidelity):
    from torch_fidelity import metric_fid, metric_isc, metric_prc

    sets = random_images(10, seed=5), random_images(12, seed=6)
    ours = [features(inception, images)[0] for images in sets]
    theirs = [fidelity(images) for images in sets]
    for mine, (pooled, logits) in zip(ours, theirs, strict=True):
        assert np.abs(mine - pooled.numpy()).max() < 5e-6 * np.abs(mine).max()
        score = metric_isc.isc_features_to_metric(logits, splits=10)["inception_score_mean"]
        mine_score = inception_score(mine @ inception.fc.weight.numpy().T, form_chunks("torch-fidelity", len(mine)))
        assert mine_score == pytest.approx(score, abs=1e-6)
    statistics = [metric_fid.fid_features_to_statistics(pooled) for pooled, _ in theirs]
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*ours) == pytest.approx(fid, rel=1e-3)
    prc = metric_prc.prc_features_to_metric(
        theirs[0][0], theirs[1][0], prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False
    )
    assert precision_recall(*ours) == (pytest.approx(prc["precision"]), pytest.approx(prc["recall"]))


def test_pytorch_fid_agrees_live_on_its_own_resize(inception, seeded_weights, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(seeded_weights.parents[2]))
    from pytorch_fid.inception import InceptionV3

    network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    images = random_images(6, seed=7)
    with torch.no_grad():
        expected = network(images.float() / 255)[0][:, :, 0, 0].numpy()
    found = features(inception, images, "half-pixel-bilinear")[0]
    assert np.abs(found - expected).max() < 5e-6 * np.abs(expected).max()
    assert np.abs(features(inception, images)[0] - expected).max() > 1e-3 * np.abs(expected).max()


def test_the_resize_is_tensorflows_to_the_bit():
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    for size in (32, 64, 256, 299, 384):
        images = random_images(2, size=size)
        expected = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
        assert torch.equal(tf1_bilinear(images, 299), expected)


def test_the_three_resizes_differ_and_keep_a_constant():
    images = random_images(2)
    assert not torch.allclose(tf1_bilinear(images, 299), pil_bicubic(images, 299), atol=1)
    constant = torch.full((1, 3, 40, 40), 77, dtype=torch.uint8)
    assert tf1_bilinear(constant, 299).eq(77).all()
    torch.testing.assert_close(pil_bicubic(constant, 299), torch.full((1, 3, 299, 299), 77.0))
    as_seen = (half_pixel_bilinear(constant, 299) - 128) / 128
    torch.testing.assert_close(as_seen, torch.full((1, 3, 299, 299), 2 * 77 / 255 - 1))


def test_exact_arithmetic_is_given_back():
    backend = torch.backends.cuda.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        with exact_arithmetic():
            assert backend.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


def test_other_weights_are_refused(tmp_path, seeded_weights):
    with tells("make weights NAME=inception-2015-12-05"):
        load_inception(tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"SHA-256 .* expected 6726825d"):
        load_inception(seeded_weights)  # the published file's hash is asked for unless another is named
    broken = tmp_path / "broken.pth"
    broken.write_bytes(seeded_weights.read_bytes()[:100_000])
    with pytest.raises(InputError, match="566 tensors"):
        load_inception(broken, hash_file(broken))
    state = torch.load(seeded_weights, weights_only=True)
    for spoil in (lambda s: s.pop("Mixed_7c.branch_pool.bn.bias"), lambda s: s.update(more=torch.zeros(1))):
        spoiled = dict(state)
        spoil(spoiled)
        torch.save(spoiled, tmp_path / "spoiled.pth")
        with pytest.raises(InputError, match="566 tensors"):
            load_inception(tmp_path / "spoiled.pth", hash_file(tmp_path / "spoiled.pth"))


@pytest.mark.parametrize(("name", "is_removed"), [("mine.pth", False), (FILE, True)])
def test_only_the_published_file_is_advised_to_be_removed(tmp_path, name, is_removed):
    (tmp_path / name).write_bytes(b"half")
    with pytest.raises(MissingArtifact, match="truncated, or another network") as caught:
        load_inception(tmp_path / name)
    assert caught.value.remove is is_removed


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02.", b"\x80\x02K\x01.", b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00(U\x01"]
)
def test_damaged_weights_of_ones_own_are_one_error(tmp_path, content):
    path = tmp_path / "mine.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine.pth does not hold the 566 tensors"):
        load_inception(path, hash_file(path))


def test_weights_are_not_unpickled(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "trap.pth"
    torch.save({"fc.weight": Trap()}, path, pickle_module=pickle)
    with pytest.raises(InputError):
        load_inception(path, hash_file(path))
    assert not (tmp_path / "sprung").exists()
