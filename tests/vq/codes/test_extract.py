"""Extraction: the tokens of every view, whatever the number of processes and interruptions."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import ilsvrc
import numpy as np
import pytest
import torch
from codes import CodesStage, main
from PIL import Image
from stage import load_config
from user_errors import tells

from masc.runtime.codes import load_codes
from masc.runtime.errors import InputError, naming
from masc.runtime.verify import verify_codes
from vq.codebook import make_codebook
from vq.codes import extract
from vq.codes.extract import extract_codes
from vq.codes.shards import ExtractConfig, Shards
from vq.crops import Views
from vq.images import ImageSource
from vq.interface import TokenizerConfig, tokenizer_path
from vq.pixels import to_tensor
from vq.pretrained import load_tokenizer
from vq.readers import load_images

SMALL = TokenizerConfig(
    name="small", target="vq.autoencoder:ConvVQ", options={"resolution": 16, "num_tokens": 32, "width": 16}
)
EMOJI = TokenizerConfig(name="emoji32", target="vq.autoencoder:ConvVQ")
NUM_IMAGES = 50
SETTINGS = ExtractConfig(num_workers=0)


@pytest.fixture(scope="module")
def squares():
    rng = np.random.default_rng(0)
    return ImageSource(
        name="squares",
        split="train",
        pixels=rng.integers(0, 256, (NUM_IMAGES, 16, 16, 3), np.uint8),
        labels=np.arange(NUM_IMAGES) % 2,
        groups=np.arange(NUM_IMAGES) // 2,
        keys=tuple(f"{n}.png" for n in range(NUM_IMAGES)),
        captions=tuple(f"square {n}" for n in range(NUM_IMAGES)),
        class_names=("a", "b"),
        attribution="",
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    (folder / "weights").write_bytes(b"x")
    model = SMALL.build().eval()
    return model, make_codebook(SMALL, folder / "weights", folder / "codebook.npz", model)


@pytest.fixture
def images(tmp_path):
    """A function that opens 50 images of five classes on disk, anew."""
    root = tmp_path / "images"
    for n in range(NUM_IMAGES):
        file = root / "train" / f"class {n % 5}" / f"{n:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(ilsvrc.jpeg(5 * n, size=(20 + n % 7, 24)))
    return lambda: load_images("folder", "train", 16, root)


def content(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def stop_after(monkeypatch, shards):
    """Let the process die once so many more shards are written."""
    save, left = Shards.save, [shards]

    def dying(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        save(*arguments)

    monkeypatch.setattr(Shards, "save", dying)


def test_tokens_are_those_of_each_view_and_are_not_made_twice(squares, small, tmp_path, monkeypatch):
    model, codebook = small
    extract_codes(model, squares, Views("center-flip"), codebook, tmp_path / "codes", SETTINGS)
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    images = to_tensor(squares.pixels)
    with torch.no_grad():
        assert np.array_equal(codes.tokens[:, 0], model.encode(images))
        assert np.array_equal(codes.tokens[:, 1], model.encode(images.flip(-1)))
    assert np.array_equal(codes.labels, squares.labels) and np.array_equal(codes.groups, squares.groups)
    assert codes.class_names == ["a", "b"] and codes.config["views"] == ["centre", "centre mirrored"]
    assert json.loads((tmp_path / "codes" / "captions.json").read_text()) == list(squares.captions)
    assert (tmp_path / "codes" / "keys.txt").read_text().split() == list(squares.keys)
    monkeypatch.setattr("vq.codes.extract.save_codes", None)
    extract_codes(model, squares, Views("center-flip"), codebook, tmp_path / "codes", SETTINGS)
    with pytest.raises(TypeError):
        extract_codes(model, squares, Views("center"), codebook, tmp_path / "codes", SETTINGS)


def test_ten_crops_are_tokenized_view_by_view(images, small, tmp_path):
    model, codebook = small
    views, source = Views("ten-crop", (1.1, 1.05)), images()
    extract_codes(model, source, views, codebook, tmp_path / "codes", SETTINGS)
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    assert codes.tokens.shape == (NUM_IMAGES, 20, 16)
    with torch.no_grad():
        expected = model.encode(to_tensor(views(source.image(33), 16)))
    assert np.array_equal(codes.tokens[33], expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupted_extraction_goes_on_to_the_same_bytes(images, small, tmp_path, monkeypatch, num_workers):
    model, codebook = small
    settings = ExtractConfig(batch_size=10, shard_size=8, num_workers=num_workers, max_failed_share=0.1)
    (tmp_path / "images" / "train" / "class 2" / "22.jpg").write_bytes(b"no image")
    views = Views("center-flip")
    extract_codes(model, images(), views, codebook, tmp_path / "whole", settings)
    for shards in (2, 1):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, shards)
            extract_codes(model, images(), views, codebook, tmp_path / "broken", settings)
    finished = sorted(file.name for file in (tmp_path / ".broken.shards").glob("*.npz"))
    assert finished == ["000000.npz", "000001.npz", "000002.npz"]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)  # one more would be one that was finished before
        extract_codes(model, images(), views, codebook, tmp_path / "broken", settings)
    assert content(tmp_path / "broken") == content(tmp_path / "whole")
    assert not (tmp_path / ".broken.shards").exists()
    assert verify_codes(tmp_path / "whole") == 7


def test_finished_shards_of_other_images_or_settings_are_made_anew(images, small, tmp_path, monkeypatch, caplog):
    model, codebook = small
    settings = ExtractConfig(shard_size=8, num_workers=0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3)
        extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", settings)
    (tmp_path / "images" / "train" / "class 0" / "00.jpg").write_bytes(ilsvrc.jpeg(77, size=(50, 50)))
    damaged = tmp_path / ".codes.shards" / "000001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", settings)
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "fresh", settings)
    assert content(tmp_path / "codes") == content(tmp_path / "fresh")
    assert "000000.npz was made from other images or another config" in caplog.text
    assert "000001.npz, which is damaged" in caplog.text and "000002.npz" not in caplog.text


def test_unreadable_images_are_listed_and_left_out(images, small, tmp_path):
    model, codebook = small
    broken = tmp_path / "images" / "train" / "class 3" / "13.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)  # one is let pass
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    assert codes.num_images == NUM_IMAGES - 1 and codes.groups.tolist() == list(range(NUM_IMAGES - 1))
    failures = (tmp_path / "codes" / "failures.txt").read_text()
    assert re.fullmatch(r"class 3/13.jpg: OSError: .*[Tt]runcated.*\n", failures)
    keys = (tmp_path / "codes" / "keys.txt").read_text().splitlines()
    assert "class 3/13.jpg" not in keys
    extract_codes(
        model, images(), Views("center"), codebook, tmp_path / "again", ExtractConfig(shard_size=5, num_workers=0)
    )
    again = load_codes(tmp_path / "again", codebook.meta.sha256)
    assert np.array_equal(again.tokens, codes.tokens) and again.labels.tolist() == codes.labels.tolist()
    leftover = tmp_path / ".codes.12345.partial"  # of a process that died while it joined
    leftover.mkdir()
    before = (tmp_path / "codes" / "codes.npy").stat().st_mtime_ns
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)
    assert (tmp_path / "codes" / "codes.npy").stat().st_mtime_ns == before and not leftover.exists()


def test_a_split_without_images_is_refused(squares, small, tmp_path):
    model, codebook = small
    none = replace(squares, split="val", pixels=squares.pixels[:0], labels=squares.labels[:0], keys=())
    with pytest.raises(InputError, match="squares has no val images"):
        extract_codes(model, none, Views("center"), codebook, tmp_path / "codes", SETTINGS)


def test_a_tokenizer_of_buffers_only_is_a_tokenizer(squares, small, tmp_path):
    class Fixed(torch.nn.Module):
        num_tokens, downsample = 32, 4

        def __init__(self):
            super().__init__()
            self.register_buffer("codebook", torch.eye(32))

        def encode(self, images):
            return torch.full((len(images), 16), 7)

    extract_codes(Fixed(), squares, Views("center"), small[1], tmp_path / "codes", SETTINGS)
    assert (load_codes(tmp_path / "codes", small[1].meta.sha256).tokens == 7).all()


def test_too_many_unreadable_images_stop_the_run_until_they_are_mended(images, small, tmp_path):
    model, codebook = small
    whole = [tmp_path / "images" / "train" / f"class {n % 5}" / f"{n:02d}.jpg" for n in (3, 24)]
    saved = [file.read_bytes() for file in whole]
    for file in whole:
        file.write_bytes(b"")
    settings = ExtractConfig(shard_size=5, num_workers=0)
    with pytest.raises(InputError, match=r"2 of the 50 images .* more than the 1 allowed.*codes/train-failures.txt"):
        extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes" / "train", settings)
    listed = (tmp_path / "codes" / "train-failures.txt").read_text()
    assert [line.partition(":")[0] for line in listed.splitlines()] == ["class 3/03.jpg", "class 4/24.jpg"]
    strict = ExtractConfig(shard_size=5, num_workers=0, max_failed_share=0.0)
    with pytest.raises(InputError, match="1 of the 50 images"):
        extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes" / "strict", strict)
    for file, data in zip(whole, saved, strict=True):
        file.write_bytes(data)
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes" / "train", settings)
    assert load_codes(tmp_path / "codes" / "train", codebook.meta.sha256).num_images == NUM_IMAGES
    assert not (tmp_path / "codes" / "train-failures.txt").exists()


def test_missing_images_count_as_unreadable(small, tmp_path):
    model, codebook = small
    ilsvrc.class_folders(tmp_path)
    source = load_images("imagenet", "train", 16, tmp_path)
    with pytest.raises(InputError, match=r"1280167 of the 1281167 images of imagenet train are missing"):
        extract_codes(model, source, Views("center"), codebook, tmp_path / "codes", SETTINGS)


def test_a_shard_that_breaks_before_the_join_is_one_error(images, small, tmp_path, monkeypatch):
    model, codebook = small

    def breaks(self, *arguments):
        save(self, *arguments)
        self.file(arguments[0]).write_bytes(b"half")

    save = Shards.save
    monkeypatch.setattr(Shards, "save", breaks)
    with tells(r"000000.npz.*`make codes DATA=squares TOKENIZER=small`"), naming(data="squares", tokenizer="small"):
        extract_codes(model, images(), Views("center-flip"), codebook, tmp_path / "codes", ExtractConfig(num_workers=0))


def test_the_shards_of_two_processes_make_the_bytes_of_one(images, small, tmp_path, monkeypatch):
    model, codebook = small
    settings = ExtractConfig(num_workers=0, shard_size=7, batch_size=4)
    extract_codes(model, images(), Views("center-flip"), codebook, tmp_path / "one" / "codes", settings)
    monkeypatch.setattr(extract, "gather_object", lambda own: list(range(8)))  # of all processes: all shards are to do
    for index in (1, 0):  # the main process, which joins the shards, comes last
        state = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, wait_for_everyone=lambda: None
        )
        monkeypatch.setattr(extract, "patient_state", lambda state=state: state)
        extract_codes(model, images(), Views("center-flip"), codebook, tmp_path / "two" / "codes", settings)
        if index == 1:
            made = sorted(file.stem for file in (tmp_path / "two" / ".codes.shards").glob("*.npz"))
            assert made == ["000001", "000003", "000005", "000007"]
    assert content(tmp_path / "one" / "codes") == content(tmp_path / "two" / "codes")


def test_damaged_codes_are_made_again(images, small, tmp_path, caplog):
    model, codebook = small
    path, source = tmp_path / "codes", images()
    extract_codes(model, source, Views("center"), codebook, path, SETTINGS)
    whole = content(path)
    for name in ("codes.npy", "labels.npy", "keys.txt", "meta.json"):
        (path / name).write_bytes(whole[name][:-1] + bytes([whole[name][-1] ^ 1]))
        extract_codes(model, source, Views("center"), codebook, path, SETTINGS)
        assert content(path) == whole, name
        (path / name).unlink()
        extract_codes(model, source, Views("center"), codebook, path, SETTINGS)
        assert content(path) == whole, name
    assert "does not match its checksum; the codes are made again" in caplog.text


def test_changed_captions_are_written_again_without_the_tokens(squares, small, tmp_path, monkeypatch):
    model, codebook = small
    path = tmp_path / "codes"
    extract_codes(model, squares, Views("center"), codebook, path, SETTINGS)
    monkeypatch.setattr(extract, "save_codes", None)
    whole = content(path)
    other = replace(squares, captions=tuple(f"other {n}" for n in range(NUM_IMAGES)))
    for source, damage in ((other, None), (squares, None), (squares, b""), (squares, b"[1, 2]")):
        if damage is not None:
            (path / "captions.json").write_bytes(damage)
        extract_codes(model, source, Views("center"), codebook, path, SETTINGS)
        assert json.loads((path / "captions.json").read_text()) == list(source.captions)
    assert content(path) == whole


def test_a_second_launch_is_refused_and_leaves_nothing(images, small, tmp_path, monkeypatch):
    model, codebook = small
    path, source = tmp_path / "codes", images()

    def second(*arguments):  # begins while the first one joins its shards
        with pytest.raises(InputError, match=r"another launch makes the codes at .*codes; wait for it"):
            extract_codes(model, source, Views("center"), codebook, path, ExtractConfig(num_workers=0, shard_size=9))
        join(*arguments)

    join = extract._join
    monkeypatch.setattr(extract, "_join", second)
    extract_codes(model, source, Views("center"), codebook, path, SETTINGS)
    assert load_codes(path, codebook.meta.sha256).num_images == NUM_IMAGES
    assert not list(tmp_path.glob(".codes.shards*")) and not list(tmp_path.glob(".codes.*.partial*"))


def test_finished_codes_need_no_lock(images, small, tmp_path, monkeypatch):
    model, codebook = small
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)

    def refuse(*_, **__):
        raise InputError("the file system is read-only")

    monkeypatch.setattr(extract, "lock_codes", refuse)
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)
    with pytest.raises(InputError, match="read-only"):
        extract_codes(model, images(), Views("center-flip"), codebook, tmp_path / "codes", SETTINGS)


def test_images_replaced_by_others_of_the_same_size_make_other_codes(small, tmp_path, caplog):
    model, codebook = small
    root = tmp_path / "d" / "train" / "a"
    root.mkdir(parents=True)
    for name, colour in (("1", "red"), ("2", "blue")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / name, "BMP")
    (root / "x.bmp").symlink_to(tmp_path / "1")
    tokens = []
    for target in ("1", "2"):
        (root / "x.bmp").unlink()
        (root / "x.bmp").symlink_to(tmp_path / target)
        source = load_images("folder", "train", 16, tmp_path / "d")
        extract_codes(model, source, Views("center"), codebook, tmp_path / "codes", SETTINGS)
        tokens.append(np.array(load_codes(tmp_path / "codes", codebook.meta.sha256).tokens))
    assert not np.array_equal(*tokens)
    assert "was made by another config; it is made again:\n  images_sha256" in caplog.text


def test_codes_of_an_earlier_version_are_kept_with_a_warning(images, small, tmp_path, monkeypatch, caplog):
    model, codebook = small
    with monkeypatch.context() as patch:
        patch.setattr("vq.readers.stored.StoredImages.identity", lambda self, rows: self.earlier_sha256)
        extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)
    before = content(tmp_path / "codes")
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)
    assert content(tmp_path / "codes") == before
    assert "was made by an earlier version" in caplog.text
    file = tmp_path / "images" / "train" / "class 0" / "00.jpg"
    file.write_bytes(file.read_bytes() + b"x")
    extract_codes(model, images(), Views("center"), codebook, tmp_path / "codes", SETTINGS)
    assert content(tmp_path / "codes")["meta.json"] != before["meta.json"]


def test_an_image_that_cannot_be_cropped_or_decoded_is_listed_with_the_others(images, small, tmp_path, monkeypatch):
    model, codebook = small
    errors = {"13.jpg": MemoryError(), "22.jpg": RuntimeError("Failed to decode\nframe 0")}
    views = Views("center")

    class Failing:
        names = views.names

        def __call__(self, image, size):
            if error := errors.pop(next(iter(errors), None), None) if image.width == 21 else None:
                raise error
            return views(image, size)

    settings = ExtractConfig(num_workers=0, max_failed_share=0.1)
    extract_codes(model, images(), Failing(), codebook, tmp_path / "codes", settings)
    failures = (tmp_path / "codes" / "failures.txt").read_text().splitlines()
    assert [line.partition(": ")[2] for line in failures] == [
        "MemoryError: MemoryError",
        "RuntimeError: Failed to decode frame 0",
    ]


def test_a_process_that_decodes_images_and_dies_is_one_error(images, small, tmp_path):
    class Deadly:
        names = ("centre",)

        def __call__(self, image, size):
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when the memory is used up

    model, codebook = small
    settings = ExtractConfig(num_workers=1)
    with pytest.raises(InputError, match=r"a process that decodes images died .*extraction.num_workers=1"):
        extract_codes(model, images(), Deadly(), codebook, tmp_path / "codes", settings)


def test_both_splits_are_checked_before_one_is_written(tmp_path):
    for n in range(3):
        for split in ("train", "val"):
            file = tmp_path / "d" / split / f"{split if n == 2 else n}" / "1.jpg"
            file.parent.mkdir(parents=True)
            file.write_bytes(ilsvrc.jpeg(n))
    path = tokenizer_path(EMOJI, tmp_path)
    make_codebook(EMOJI, path, tmp_path / "emoji32" / "codebook.npz", load_tokenizer(path, EMOJI))
    options = ["tokenizer=emoji32", "data=folder256", "data.resolution=32", f"data.path={tmp_path / 'd'}"]
    with pytest.raises(InputError, match=r"val of .* has the class 'val', which train does not have"):
        main(load_config("codes", CodesStage, [*options, f"artifacts={tmp_path}"]))
    assert not (tmp_path / "emoji32" / "codes").exists()


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(tmp_path, root):
    data = tmp_path / "data"
    for split in ("train", "val"):
        for n in range(24):
            file = data / split / f"class {n % 3}" / f"{n:02d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"" if n == 13 else ilsvrc.jpeg(10 * n, size=(40, 50)))
    path = tokenizer_path(TokenizerConfig(name="emoji32", target="vq.autoencoder:ConvVQ"), tmp_path)
    config = TokenizerConfig(name="emoji32", target="vq.autoencoder:ConvVQ")
    make_codebook(config, path, tmp_path / "one" / "emoji32" / "codebook.npz", load_tokenizer(path, config))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    options = ["tokenizer=emoji32", "data=folder256", "data.resolution=32", f"data.path={data}"]
    options += ["extraction.shard_size=5", "extraction.batch_size=4", "extraction.num_workers=1"]
    main(load_config("codes", CodesStage, [*options, f"artifacts={tmp_path / 'one'}"]))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, "scripts/codes.py", *options, f"artifacts={tmp_path / 'two'}"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "train: 23 images, 2 view(s) of 64 tokens, 1 not readable" in done.stdout
    for split in ("train", "val"):
        one, two = (content(tmp_path / name / "emoji32" / "codes" / "folder256" / split) for name in ("one", "two"))
        assert one == two and "failures.txt" in one


def test_images_that_do_not_fit_the_tokenizer_are_refused(squares, small, tmp_path):
    config = TokenizerConfig(name="emoji32", target="vq.autoencoder:ConvVQ")
    path = tokenizer_path(config, tmp_path)
    model = load_tokenizer(path, config)
    codebook = make_codebook(config, path, tmp_path / "codebook.npz", model)
    with pytest.raises(InputError, match="16 pixels a side, but the tokenizer takes 32"):
        extract_codes(model, squares, Views("center"), codebook, tmp_path / "codes", SETTINGS)
    odd = replace(squares, pixels=np.zeros((50, 18, 18, 3), np.uint8))
    with pytest.raises(InputError, match="squares have 18 pixels a side, but the tokenizer takes multiples of 4"):
        extract_codes(model, odd, Views("center"), codebook, tmp_path / "codes", SETTINGS)
