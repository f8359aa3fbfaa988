"""Image sets of every kind, read batch by batch, and the errors for bad images."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from masc.runtime.errors import InputError
from metrics.streams import NpzImages, open_samples, read_batches

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 8, 10, 3), dtype=np.uint8)


def png(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels, **options).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def places(tmp_path):
    """The same images as a folder, a zip, WebDataset shards, and both kinds of .npz."""
    folder, shards = tmp_path / "folder", tmp_path / "shards"
    folder.mkdir()
    shards.mkdir()
    files = {f"{index:06d}.png": png(pixels) for index, pixels in enumerate(PIXELS)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    for shard in range(2):
        with tarfile.open(shards / f"{shard:03d}.tar", "w") as tar:
            for name, data in list(files.items())[6 * shard : 6 * shard + 6]:
                for member, content in ((name, data), (name.replace("png", "cls"), b"3")):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    np.savez(tmp_path / "stored.npz", PIXELS)
    np.savez_compressed(tmp_path / "deflated.npz", PIXELS, np.arange(11))
    return [folder, tmp_path / "images.zip", shards, tmp_path / "stored.npz", tmp_path / "deflated.npz"]


def test_every_place_gives_the_same_images_in_the_same_order(places):
    for place in places:
        images = open_samples(place)
        assert len(images) == 11
        assert np.array_equal(images.read(0, 11), PIXELS)
        assert np.array_equal(images.read(9, 20), PIXELS[9:])
        assert np.array_equal(images.read(2, 5), PIXELS[2:5])  # backwards, from compressed data too


def test_batches_come_in_the_order_asked_for(places):
    for place in places:
        found = list(read_batches(open_samples(place), range(0, 11, 2)[1::2], 2))
        assert [start for start, _ in found] == [2, 6, 10]
        assert np.array_equal(np.concatenate([batch for _, batch in found]), PIXELS[[2, 3, 6, 7, 10]])


def test_an_npz_is_never_in_memory(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", PIXELS)
    monkeypatch.setattr(np, "load", None)
    images, most = NpzImages(tmp_path / "a.npz"), []
    read = images._read_at
    monkeypatch.setattr(images, "_read_at", lambda start, size: most.append(size) or read(start, size))
    for _ in read_batches(images, range(0, 11, 3), 3):
        pass
    assert max(most) == 3 * 8 * 10 * 3


def test_other_images_have_another_identity(places, tmp_path):
    np.savez(tmp_path / "other.npz", PIXELS[::-1])
    assert open_samples(tmp_path / "other.npz").sha256 != open_samples(tmp_path / "stored.npz").sha256
    before = open_samples(places[0]).sha256
    file = places[0] / "000003.png"
    file.write_bytes(file.read_bytes()[:-1] + b"?")  # as long as it was
    assert open_samples(places[0]).sha256 != before
    (places[0] / "000000.png").unlink()
    assert open_samples(places[0]).sha256 != before


@pytest.mark.parametrize("name", ["stored.npz", "deflated.npz"])
def test_a_truncated_npz_is_refused(places, tmp_path, name):
    data = (tmp_path / name).read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="truncated"):
        open_samples(tmp_path / "cut.npz")


def test_a_damaged_npz_is_named_when_its_images_are_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "bad.npz", noise)
    data = bytearray((tmp_path / "bad.npz").read_bytes())
    data[90_000:90_100] = bytes(100)
    (tmp_path / "bad.npz").write_bytes(data)
    images = open_samples(tmp_path / "bad.npz")
    with pytest.raises(InputError, match=r"bad.npz is damaged .*copy it again"):
        images.read(0, 40)


def test_an_npz_of_something_else_is_refused(tmp_path):
    for array in (PIXELS[0], PIXELS.astype(np.float32), PIXELS[..., :1], PIXELS[:0], np.asfortranarray(PIXELS)):
        np.savez(tmp_path / "x.npz", array)
        with pytest.raises(InputError, match=r"^expected arr_0 of images \(M, H, W, 3\) uint8") as refused:
            open_samples(tmp_path / "x.npz")
        assert ("Fortran" in str(refused.value)) == (array.shape == PIXELS.shape and array.dtype == np.uint8)
    np.savez(tmp_path / "x.npz", images=PIXELS)
    with pytest.raises(InputError, match="with an array arr_0"):
        open_samples(tmp_path / "x.npz")


def test_places_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="no samples at"):
        open_samples(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in"):
        open_samples(tmp_path / "empty")


def test_images_of_mixed_sizes_are_refused_by_name(places):
    (places[0] / "000004.png").write_bytes(png(PIXELS[0][:, :9]))
    with pytest.raises(InputError, match=r"000000.png .* has 10 x 8 pixels, 000004.png .* has 9 x 8"):
        open_samples(places[0]).read(0, 11)


def test_greyscale_is_read_with_a_warning(places, caplog):
    for name in ("000001.png", "000002.png"):
        (places[0] / name).write_bytes(png(PIXELS[1][..., 0]))
    images = open_samples(places[0])
    found = images.read(0, 3)
    assert np.array_equal(found[1], PIXELS[1][..., :1].repeat(3, 2))
    assert images.num_grey == 2 and caplog.text.count("three equal channels") == 1


def test_sixteen_bits_alpha_and_broken_files_are_refused(places):
    deep = PIXELS[0][..., 0].astype(np.uint16) * 257
    alpha = np.concatenate([PIXELS[0], PIXELS[0][..., :1]], 2)
    for data, words in (
        (png(deep), "16 bits or more"),
        (sixteen_bit_rgb(), "16 bits or more"),
        (png(alpha), "channels RGBA"),
        (png(PIXELS[0])[:60], "cannot be read"),
    ):
        (places[0] / "000000.png").write_bytes(data)
        with pytest.raises(InputError, match=words):
            open_samples(places[0]).read(0, 1)


def sixteen_bit_rgb():
    """A PNG of 48 bits a pixel, which Pillow would quietly read as 24."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(10 * 6) for _ in range(8))
    header = struct.pack(">IIBBBBB", 10, 8, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_any_error_of_a_decoder_names_the_image(places, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    for error in (RuntimeError("Failed to decode frame 0"), MemoryError(), TypeError("x")):
        with pytest.raises(InputError, match=rf"the image 000000.png of .* cannot be read \({type(error).__name__}"):
            open_samples(places[0]).read(0, 1)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "shape", [(10**9, 10**9, 10**9, 3), (1, 2**20, 2**20, 3), (2**62, 2, 2, 3), (-1, 8, 10, 3), (3, 8, 10, 3)]
)
def test_an_npz_that_claims_other_sizes_is_refused_before_it_is_read(tmp_path, shape, compressed):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(100))
    with pytest.raises(
        InputError, match=r"x.npz is no .npz with an array arr_0 of images|expected an image of at most"
    ):
        open_samples(tmp_path / "x.npz")


def test_an_npz_with_any_damage_is_one_error(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", PIXELS)
    whole, rng = (tmp_path / "whole.npz").read_bytes(), np.random.default_rng(0)
    for position in (*range(160), *rng.integers(160, len(whole) - 160, 40), *range(len(whole) - 120, len(whole))):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "x.npz").write_bytes(damaged)
        try:
            images = open_samples(tmp_path / "x.npz")
            assert np.array_equal(images.read(0, 11), PIXELS)
        except InputError as error:
            assert "x.npz" in str(error)


def test_a_file_replaced_by_another_of_the_same_size_has_another_state(places, monkeypatch):
    monkeypatch.setattr("metrics.streams.HASHED", 2)  # the first and the last
    before = open_samples(places[0])
    file = places[0] / "000003.png"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    os.utime(file, ns=(1, 1))
    after = open_samples(places[0])
    assert before.sha256 == after.sha256 and before.state != after.state


@pytest.mark.parametrize("row", [3, 4], ids=["stored", "deflated"])
def test_an_npz_replaced_while_it_is_read_is_refused(places, tmp_path, row):
    images = open_samples(places[row])
    images.read(0, 2)
    np.savez(tmp_path / "other.npz", PIXELS[::-1])
    (tmp_path / "other.npz").replace(places[row])
    with pytest.raises(InputError, match="changed while it was read"):
        images.read(2, 4)
    assert open_samples(places[row]).state != images.state
