"""References, features and protocols with a stand-in for the network: laws that hold for any weights."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from accelerate import PartialState
from inception_weights import StandIn
from PIL import Image
from scipy.spatial.distance import cdist
from user_errors import tells

from masc.runtime.errors import InputError
from metrics.bootstrap import SHARE, bootstrap_interval
from metrics.features import PixelSums, inception_features
from metrics.frechet import Gaussian, Moments, frechet_distance
from metrics.inception_score import form_chunks, inception_score
from metrics.precision_recall import inside_balls, precision_recall
from metrics.protocol import ProtocolConfig, measure
from metrics.reference import load_statistics, make_reference
from metrics.streams import NpzImages, open_samples
from vq.hub.pins import Pin, lock
from vq.hub.releases import RELEASES
from vq.images import ImageSource

STATE = PartialState(cpu=True)
RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
SAMPLES = (RNG.integers(0, 256, (50, 16, 16, 3)) * 0.8).astype(np.uint8)
MODEL = StandIn()


def source(pixels=TRAIN, split="train"):
    count = len(pixels)
    names = tuple(map(str, range(count)))
    return ImageSource("noise", split, pixels, np.arange(count) % 5, np.arange(count), names, (), tuple("abcde"), "")


@pytest.fixture
def samples(tmp_path):
    np.savez(tmp_path / "samples.npz", SAMPLES)
    return open_samples(tmp_path / "samples.npz")


def load(tmp_path, name="noise-train", model=MODEL, resize="tf1-bilinear"):
    return load_statistics(name, tmp_path / "artifacts", tmp_path / "weights", model, resize, 7, STATE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A place with a reference in artifacts/, and the reference as it was first loaded: a factor of 2048 x 2048 takes
    seconds."""
    place = tmp_path_factory.mktemp("shared")
    path = place / "artifacts" / "references" / "noise-train.npz"
    make_reference(path, source(), MODEL, "tf1-bilinear", 25, 0, 7, STATE)
    return place, load(place)


@pytest.fixture
def made(shared, tmp_path):
    """The reference alone, in artifacts/ of the test's own place."""
    path = tmp_path / "artifacts" / "references" / "noise-train.npz"
    path.parent.mkdir(parents=True)
    path.hardlink_to(shared[0] / "artifacts" / "references" / path.name)  # 64 MiB
    return path


@pytest.fixture
def features_kept(shared, made):
    """The features of the reference, beside it."""
    for file in (shared[0] / "artifacts" / "references").glob("features-*.npz"):
        (made.parent / file.name).hardlink_to(file)


def protocol(**changes):
    given = {"name": "adm", "evaluator": "adm", "reference": "noise-train", "num_images": 50}
    return ProtocolConfig(**{**given, "metrics": ["FID", "sFID", "IS", "precision", "recall"], **changes})


def test_a_reference_is_in_adms_layout_and_holds_all_statistics(made):
    with np.load(made, allow_pickle=False) as archive:
        arrays = dict(archive)
    found = inception_features(open_of(TRAIN, made.parent), MODEL, "tf1-bilinear", 16, STATE)
    np.testing.assert_allclose(arrays["mu"], found.pooled.mean(0), atol=1e-6)
    np.testing.assert_allclose(arrays["sigma"], np.cov(found.pooled.T.astype(np.float64)), atol=1e-6)
    assert arrays["mu_s"].shape == (2023,) and arrays["sigma_s"].shape == (2023, 2023)
    assert arrays["arr_0"].shape == (25, 16, 16, 3)
    rows = [int(np.flatnonzero((image == TRAIN).all((1, 2, 3)))[0]) for image in arrays["arr_0"]]
    assert len(set(rows)) == 25
    header = json.loads(str(arrays["header"]))
    assert header["count"] == 60 and header["split"] == "train" and header["resize"] == "tf1-bilinear"


def open_of(pixels, folder):
    np.savez(folder / "given.npz", pixels)
    return NpzImages(folder / "given.npz")


def test_a_reference_is_made_once_and_never_replaced(made, tmp_path):
    before = made.stat().st_mtime_ns
    make_reference(made, source(), MODEL, "tf1-bilinear", 25, 0, 7, STATE)
    assert made.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"holds another reference: .*images_sha256"):
        make_reference(made, source(TRAIN[::-1].copy()), MODEL, "tf1-bilinear", 25, 0, 7, STATE)
    with pytest.raises(InputError, match=r"resize tf1-bilinear there, pil-bicubic now"):
        make_reference(made, source(), MODEL, "pil-bicubic", 25, 0, 7, STATE)
    assert made.stat().st_mtime_ns == before


def test_statistics_that_cannot_be_compared_are_refused(made, tmp_path):
    with pytest.raises(InputError, match=r"with the resize tf1-bilinear; this protocol has .* pil-bicubic"):
        load(tmp_path, resize="pil-bicubic")
    other = StandIn()
    other.sha256 = "6" * 64
    with pytest.raises(InputError, match="from the extractor 555555555555"):
        load(tmp_path, model=other)
    np.savez(tmp_path / "lite.npz", mu=np.zeros(1280), sigma=np.eye(1280))
    with pytest.raises(InputError, match=r"mu of .* has shape \(1280,\), expected \(2048,\).*another extractor"):
        load(tmp_path, str(tmp_path / "lite.npz"))
    np.savez(tmp_path / "half.npz", mu=np.zeros(2048))
    with pytest.raises(InputError, match="not both mu and sigma"):
        load(tmp_path, str(tmp_path / "half.npz"))
    np.savez(tmp_path / "nan.npz", mu=np.full(2048, np.nan), sigma=np.eye(2048))
    with pytest.raises(InputError, match="not finite"):
        load(tmp_path, str(tmp_path / "nan.npz"))
    (tmp_path / "cut.npz").write_bytes(made.read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged or another kind of file"):
        load(tmp_path, str(tmp_path / "cut.npz"))
    for change, words in [({"mu": np.zeros(2048)}, "its own SHA-256"), ({"header": np.array("[1]")}, "be an object")]:
        with np.load(made) as whole:
            np.savez(tmp_path / "other.npz", **{**whole, **change})
        with pytest.raises(InputError, match=words):
            load(tmp_path, str(tmp_path / "other.npz"))
    with tells(r"no reference 'nothing'.*make reference DATA="):
        load(tmp_path, "nothing")
    with tells(r"make reference DATA=imagenet256 ARGS=.resize=pil-bicubic"):
        load(tmp_path, "nothing", resize="pil-bicubic")


def test_a_reference_of_the_registry_must_be_the_published_one(made, features_kept, tmp_path):
    place = RELEASES["adm-imagenet64"].path(tmp_path / "weights")
    place.parent.mkdir()
    shutil.copy(made, place)
    assert load(tmp_path, "adm-imagenet64").split == "train"  # nothing is known of this one yet
    lock(RELEASES["adm-imagenet64"], RELEASES["adm-imagenet64"].files[0], Pin(sha256="0" * 64), tmp_path / "weights")
    with tells(r"has SHA-256 .*expected 0000.*make weights NAME=adm-imagenet64"):
        load(tmp_path, "adm-imagenet64")


def test_a_references_features_are_kept(shared):
    place, first = shared
    kept = sorted((place / "artifacts" / "references").glob("features-*.npz"))
    assert len(kept) == 1

    class NoNetwork(StandIn):
        def forward(self, images):
            raise AssertionError("the features are there already")

    again = load(place, model=NoNetwork())
    assert np.array_equal(first.neighbours, again.neighbours) and len(first.neighbours) == 25
    assert (first.split, first.size, first.name) == ("train", 60, "noise-train")
    np.testing.assert_allclose(again.pooled.covariance, first.pooled.covariance, atol=1e-9)


def test_processes_wait_as_often_whether_features_are_there_or_not(tmp_path, monkeypatch):
    """Statistics without images need no exchange, so one process may find what another has just written."""
    waits = []
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: waits.append(1))
    np.savez(tmp_path / "bare.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    load(tmp_path, str(tmp_path / "bare.npz"))
    first = len(waits)
    load(tmp_path, str(tmp_path / "bare.npz"))
    assert first == len(waits) - first > 0


def test_statistics_alone_give_no_precision(made, tmp_path, samples, caplog):
    with np.load(made) as archive:
        arrays = {key: archive[key] for key in ("mu", "sigma")}
    np.savez(tmp_path / "bare.npz", **arrays)
    reference = load(tmp_path, str(tmp_path / "bare.npz"))
    found = inception_features(samples, MODEL, "tf1-bilinear", 16, STATE)
    rows = measure(protocol(), found, reference, MODEL, {}, 0).rows
    assert [row["metric"] for row in rows] == ["FID", "IS"]
    assert "no precision" in caplog.text and "no sFID" in caplog.text
    assert "does not say which network its statistics come from" in caplog.text


def test_images_without_statistics_are_measured_as_a_reference(tmp_path, samples):
    (tmp_path / "folder").mkdir()
    for index, pixels in enumerate(TRAIN):
        Image.fromarray(pixels).save(tmp_path / "folder" / f"{index:03d}.png")
    reference = load(tmp_path, str(tmp_path / "folder"))
    assert reference.size == len(reference.neighbours) == 60
    ours = inception_features(samples, MODEL, "tf1-bilinear", 16, STATE)
    theirs = inception_features(open_of(TRAIN, tmp_path), MODEL, "tf1-bilinear", 16, STATE)
    assert frechet_distance(ours.gaussian, reference.pooled) == pytest.approx(
        frechet_distance(ours.pooled, theirs.pooled), rel=1e-9
    )


def test_a_protocols_rows_hold_the_protocol_in_full(made, features_kept, tmp_path, samples):
    found = inception_features(samples, MODEL, "tf1-bilinear", 16, STATE)
    results = measure(protocol(), found, load(tmp_path), MODEL, {"images": "samples", "guidance": 2.0}, 5)
    assert [row["metric"] for row in results.rows] == ["FID", "sFID", "IS", "precision", "recall"]
    for key in ("evaluator", "extractor_sha256", "resize", "arithmetic", "num_images", "guidance", "reference_sha256"):
        assert key in results["FID"]["protocol"], key
    assert results["FID"]["protocol"]["arithmetic"] == {"dtype": "float32", "tf32": False, "bf16": False}
    for metric in ("FID", "IS", "precision", "recall"):
        interval = results[metric]["interval"]
        assert interval["low"] <= results[metric]["value"] <= interval["high"] and interval["replicates"] == 5
    assert "interval" not in results["sFID"]
    assert results.evidence["image_sizes"] == {"16x16": 50} and "nonfinite_features" not in results.evidence
    twin = measure(protocol(inception_score="torch-fidelity"), found, load(tmp_path), MODEL, {}, 0)
    assert twin["IS"]["protocol"]["splits"] == 10 and results["IS"]["protocol"]["splits"] == 1


def test_neither_batches_nor_shares_change_a_feature(samples):
    whole = inception_features(samples, MODEL, "tf1-bilinear", 50, STATE)
    parts = inception_features(samples, MODEL, "tf1-bilinear", 3, STATE)
    np.testing.assert_allclose(whole.pooled, parts.pooled, atol=1e-5)
    np.testing.assert_allclose(whole.spatial.covariance, parts.spatial.covariance, atol=1e-5)


def test_features_that_are_not_finite_are_named(samples):
    class Broken(StandIn):
        def forward(self, images):
            pooled, spatial = super().forward(images)
            pooled[2, 5] = torch.nan
            return pooled, spatial

    with pytest.raises(InputError, match=r"the features of image 2 of .* are not finite"):
        inception_features(samples, Broken(), "tf1-bilinear", 16, STATE)


def test_moments_of_parts_are_those_of_the_whole():
    rows = torch.from_numpy(RNG.standard_normal((90, 12)) + 1e4)  # far from zero: sums of squares would cancel
    whole = Moments(12)
    whole.add(rows)
    for cuts in ((40, 41), (3, 60), (1, 5), (80, 89)):
        parts = [Moments(12) for _ in range(3)]
        for part, piece in zip(parts, rows.tensor_split(cuts), strict=True):
            for batch in piece.split(7):
                part.add(batch)
        merged = Moments(12)
        merged.merge(part.cpu() for part in parts)
        assert merged.count == 90
        np.testing.assert_allclose(merged.gaussian().mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(merged.gaussian().covariance, np.cov(rows.numpy().T), atol=1e-8)
    few = Moments(12)
    few.add(rows[:5])
    assert few.gaussian().rows is not None and whole.gaussian().rows is None
    np.testing.assert_allclose(few.gaussian().covariance, np.cov(rows[:5].numpy().T), atol=1e-8)


def test_moments_keep_no_samples_beyond_the_dimensions():
    moments = Moments(6)
    for _ in range(50):
        moments.add(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
        assert sum(map(len, moments._rows)) <= 6
    assert moments.count == 250


def test_a_dimension_that_never_varies_changes_nothing():
    a, b = RNG.standard_normal((60, 8)), RNG.standard_normal((70, 8)) * 1.3
    padded = [np.concatenate([part, np.full((len(part), 2), 3.0)], 1) for part in (a, b)]
    assert frechet_distance(*padded) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_a_kept_factor_gives_the_same_distance():
    a, b = RNG.standard_normal((60, 8)), RNG.standard_normal((70, 8)) * 1.3
    reference = Gaussian.of(b)
    kept = Gaussian.from_factor(reference.mean, reference.factor)
    assert frechet_distance(Gaussian.of(a), kept) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_adms_chunks_are_consecutive_and_torch_fidelitys_shuffled():
    assert [len(chunk) for chunk in form_chunks("adm", 12_000)] == [5000, 5000, 2000]
    assert np.array_equal(np.concatenate(form_chunks("adm", 12_000)), np.arange(12_000))
    splits = form_chunks("torch-fidelity", 1003)
    assert len(splits) == 10 and np.array_equal(np.sort(np.concatenate(splits)), np.arange(1003))
    # Images sorted by class: each of ADM's chunks sees one class only, the shuffled ones see all.
    logits = np.repeat(np.eye(10) * 20, 1000, axis=0)
    assert inception_score(logits, form_chunks("adm", len(logits))) < 5.1
    assert inception_score(logits, form_chunks("torch-fidelity", len(logits))) > 9.8


def test_probabilities_that_underflow_leave_the_score_finite():
    assert inception_score(np.eye(3) * 1e5) == pytest.approx(3)


def test_half_precision_follows_adms_rule():
    """Against a plain statement of the rule in NumPy: float16 norms, products and sums, float32 if any overflows."""
    rng = np.random.default_rng(1)
    for scale in (0.5, 40.0):  # the second overflows float16
        a, b = (rng.standard_normal((n, 64)).astype(np.float32) * scale for n in (120, 90))

        def distances(x, y):
            with np.errstate(over="ignore", invalid="ignore"):
                hx, hy = x.astype(np.float16), y.astype(np.float16)
                nx, ny = ((h * h).astype(np.float32).sum(1).astype(np.float16) for h in (hx, hy))
                product = (hx.astype(np.float32) @ hy.astype(np.float32).T).astype(np.float16)
                found = (nx[:, None] - 2 * product) + ny
            if np.isfinite(found).all():
                return np.maximum(found.astype(np.float32), 0)
            return np.maximum((x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T, 0)

        radii = [np.sort(distances(x, x), 1)[:, 3] for x in (a, b)]
        between = distances(a, b)
        inside, covered = inside_balls(a, b, half=True)
        assert np.array_equal(inside, (between <= radii[1]).any(1))
        assert np.array_equal(covered, (between <= radii[0][:, None]).any(0))


def test_balls_far_from_the_origin_are_those_of_float64():
    """Features with a large common mean, as Inception's have: squared norms of millions, distances of thousands."""
    rng = np.random.default_rng(3)
    a, b = ((36 + 1.6 * rng.standard_normal((n, 256))).astype(np.float32) for n in (400, 300))
    within, across = [cdist(x.astype(np.float64), x.astype(np.float64)) for x in (a, b)], cdist(a, b)
    radii = [np.sort(distances, 1)[:, 3] for distances in within]
    inside, covered = inside_balls(a, b)
    assert np.array_equal(inside, (across <= radii[1]).any(1))
    assert np.array_equal(covered, (across <= radii[0][:, None]).any(0))


def test_blocks_change_no_ball(monkeypatch):
    a, b = RNG.standard_normal((150, 5)), RNG.standard_normal((130, 5)) + 0.5
    whole = [precision_recall(a, b, half) for half in (False, True)]
    monkeypatch.setattr("metrics.precision_recall.BLOCK", 7)
    monkeypatch.setattr("metrics.precision_recall.HALF_BLOCK", 11)
    assert [precision_recall(a, b, half) for half in (False, True)] == whole


def test_pixel_sums_tell_jpeg_and_blur():
    import io

    rng = np.random.default_rng(5)
    coarse = torch.from_numpy(rng.integers(0, 256, (6, 3, 9, 9)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=64, mode="bicubic")
    images = (smooth + torch.from_numpy(rng.normal(0, 6, smooth.shape))).clamp(0, 255).byte()

    def summary(given):
        sums = PixelSums()
        for part in given.split(4):
            sums.add(part)
        return sums.summary()

    def jpeg(image):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=30)
        return torch.from_numpy(np.asarray(Image.open(buffer)).copy()).permute(2, 0, 1)

    plain, coded = summary(images), summary(torch.stack([jpeg(image) for image in images]))
    assert abs(plain["blockiness"] - 1) < 0.1 < coded["blockiness"] - 1
    blurred = torch.nn.functional.avg_pool2d(images.float(), 3, 1, 1).byte()
    assert summary(blurred)["sharpness"] < 0.7 * plain["sharpness"]


def test_a_reference_that_cannot_be_is_refused_before_an_image_is_read():
    from reference import ReferenceStage
    from stage import load_config

    for given, words in (("resize=nearest", "resize must be one of tf1-bilinear"), ("num_kept=0", "at least 2")):
        with pytest.raises(InputError, match=words):
            load_config("reference", ReferenceStage, ["data=twemoji", given])
    assert load_config("reference", ReferenceStage, ["resize=pil-bicubic"]).reference == "imagenet256-train-pil-bicubic"


def test_a_protocol_that_cannot_be_is_refused():
    for changes, words in (
        ({"metrics": ["KID"]}, "KID"),
        ({"resize": "nearest"}, "nearest"),
        ({"inception_score": "x"}, "'x'"),
    ):
        with pytest.raises(ValueError, match=words):
            protocol(**changes)
    assert dataclasses.asdict(protocol())["half_precision_distances"] is False


def test_intervals_stay_where_the_metric_has_values():
    shares = np.array([1.0] * 9 + [0.0])

    def mean(drawn):
        return float(shares[drawn].mean())

    found = bootstrap_interval(0.9, 10, mean, 50, SHARE)
    assert 0 < found["low"] < 0.9 and found["high"] == 1.0
    # A share of 9 in 10 has the standard error 0.095.
    free = bootstrap_interval(0.9, 10, mean, 400, (-9.0, 9.0))
    assert (free["high"] - free["low"]) / 2 == pytest.approx(1.96 * 0.0949, rel=0.15)
    assert bootstrap_interval(0.9, 10, mean, 1) is None


def test_stored_features_of_a_folder_are_not_those_of_other_images_of_the_same_size(tmp_path, monkeypatch):
    configs = []

    def stop(path, kind, version, config, *_):
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("metrics.reference.reuse_npz", stop)
    monkeypatch.setattr("metrics.streams.HASHED", 2)  # the first and the last
    for n in range(3):
        Image.fromarray(TRAIN[n]).save(tmp_path / f"{n}.bmp")
    for content in (None, Image.fromarray(TRAIN[9])):
        if content:
            content.save(tmp_path / "1.bmp")
            os.utime(tmp_path / "1.bmp", ns=(1, 1))
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path, str(tmp_path))
    assert configs[0]["reference"] == configs[1]["reference"] and configs[0] != configs[1]
