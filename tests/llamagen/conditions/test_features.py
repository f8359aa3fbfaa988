"""Text features equal a direct call of the encoder, in LlamaGen's left padding, whatever interrupts the extraction.

The encoder is a random T5 of two layers and a tokenizer trained on a few lines, both stored as on the hub."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from stage import load_config
from text_encoder import WORDS, make_encoder
from text_features import TextFeaturesStage, main
from user_errors import tells

from llamagen.conditions import features as text
from llamagen.conditions.captions import Captions, clean_caption
from llamagen.conditions.encoders import T5Encoder
from llamagen.conditions.features import TextFeatures, extract_text_features
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file

BATCH = 4


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def captions():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, length)).title() for length in (1, 3, 9, 2, 14, 5, 1, 7, 90, 4)]
    return Captions([*texts, "", "<b>Rain</b> & trees"], [f"{index}.jpg" for index in range(12)])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(text, "SHARD", BATCH)


@pytest.fixture(scope="module")
def made(encoder, captions, tmp_path_factory):
    """The features of an unbroken run."""
    path = tmp_path_factory.mktemp("made") / "text"
    extract_text_features(captions, T5Encoder(encoder), path, BATCH)
    return path


def direct(encoder, texts, dtype=torch.bfloat16):
    """Right-padded hidden states (B, 120, C) and masks, as LlamaGen's T5Embedder returns them."""
    from transformers import AutoTokenizer, T5EncoderModel

    model = T5EncoderModel.from_pretrained(encoder, dtype=dtype).eval()
    tokens = AutoTokenizer.from_pretrained(encoder)(
        [clean_caption(line) for line in texts],
        max_length=120,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model(**tokens).last_hidden_state, tokens["attention_mask"]


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_a_batch_is_the_encoders_output_rotated_and_masked(encoder, captions, made):
    features = TextFeatures.load(made)
    assert (len(features), features.dim) == (12, 16) and features.captions == captions.texts
    assert features.images == captions.images
    lengths = []
    for start in range(0, 12, BATCH):
        rows = range(start, start + BATCH)
        hidden, mask = direct(encoder, captions.texts[start : start + BATCH])
        # LlamaGen's sample_t2i.py: each row rotated by its length, the mask flipped, the product of both.
        rotated = torch.stack([state.roll(-int(own.sum()), 0) for state, own in zip(hidden, mask, strict=True)])
        ours, our_mask = features.batch(rows)
        assert ours.dtype == torch.float32 and our_mask.dtype == torch.bool
        torch.testing.assert_close(our_mask, mask.flip(-1).bool())
        torch.testing.assert_close(ours, (rotated * mask.flip(-1)[..., None]).float(), rtol=0, atol=0)
        lengths += mask.sum(1).tolist()
    assert max(lengths) == 120 and lengths[10] == 1  # one was cut; the empty caption is its end mark
    assert features.offsets.tolist() == [0, *np.cumsum(lengths)]


def test_rows_come_in_the_order_asked_for(made):
    features = TextFeatures.load(made)
    whole, mask = features.batch(range(12))
    some, some_mask = features.batch([7, 2, 7])
    assert torch.equal(some, whole[[7, 2, 7]]) and torch.equal(some_mask, mask[[7, 2, 7]])
    with pytest.raises(IndexError, match="caption 12 of 12"):
        features.batch([12])


def test_another_batch_size_rounds_otherwise_at_most(encoder, captions, made, tmp_path):
    extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", 3, dtype="float32")
    ours = TextFeatures.load(tmp_path / "text").batch(range(12))[0]
    exact = torch.cat([direct(encoder, captions.texts[row : row + 1], torch.float32)[0] for row in range(12)])
    mask = TextFeatures.load(made).batch(range(12))[1]
    # Half a unit in the last of bfloat16's eight bits, and what float32 sums in another order.
    torch.testing.assert_close(ours[mask], exact[mask.flip(-1)], rtol=2**-8, atol=1e-6)


def test_an_interrupted_extraction_goes_on_and_ends_byte_identical(encoder, captions, made, tmp_path, monkeypatch):
    saved, save = [], text._save_shard

    def save_two(path, encoded):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, encoded)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(text, "_save_shard", save_two)
        extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", BATCH)
    assert not (tmp_path / "text").exists()
    again = []
    monkeypatch.setattr(text, "_save_shard", lambda path, encoded: (again.append(path), save(path, encoded)))
    extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", BATCH)
    assert len(again) == 1 and not set(again) & set(saved)
    assert contents(tmp_path / "text") == contents(made)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", BATCH)  # done already
    assert len(again) == 1


def test_each_process_takes_its_own_shards(encoder, captions, made, tmp_path, monkeypatch):
    saved, save = [], text._save_shard
    monkeypatch.setattr(text, "_save_shard", lambda path, encoded: (saved.append(path.stem), save(path, encoded)))
    answers = []  # what the main process would broadcast
    monkeypatch.setattr(text, "from_main", lambda compute: answers.append(compute()) or answers[-1])
    for rank in (1, 0):
        process = types.SimpleNamespace(
            process_index=rank,
            num_processes=2,
            is_main_process=rank == 0,
            device=torch.device("cpu"),
            wait_for_everyone=lambda: None,
        )
        extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", BATCH, accelerator=process)
    assert saved == ["000000004", "000000000", "000000008"]
    assert contents(tmp_path / "text") == contents(made)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(encoder, captions, tmp_path, root):
    # Shards of the usual size: three of them, so that both processes have some.
    many = tmp_path / "many.txt"
    many.write_text("\n".join(line for line in captions.texts * 200 if line))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for processes, start in (("1", []), ("2", launch)):
        arguments = [f"captions={many}", f"encoder={encoder}", f"out={tmp_path / processes}"]
        command = [sys.executable, *start, "scripts/text_features.py", *arguments]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_the_stage_reads_encodes_and_says_what_is_missing(encoder, captions, made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"image_path": image, "text": [text]} for text, image in zip(captions.texts, captions.images, strict=True)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(load_config("text_features", TextFeaturesStage, ["captions=some.jsonl", f"encoder={encoder}", "batch_size=4"]))
    assert capsys.readouterr().out.startswith("artifacts/text/some: 12 captions")
    assert contents(tmp_path / "artifacts" / "text" / "some") == contents(made)
    with pytest.raises(InputError, match="CAPTIONS="):
        main(load_config("text_features", TextFeaturesStage, []))
    with tells("make weights NAME=flan-t5-xl"):
        main(load_config("text_features", TextFeaturesStage, ["captions=some.jsonl"]))


def test_features_of_others_are_refused(encoder, captions, made, tmp_path):
    with tells(r"no text features at .*make text-features"):
        TextFeatures.load(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds other text features: captions_sha256 .*rm -r"):
        extract_text_features(Captions(["another"]), T5Encoder(encoder), made, BATCH)
    other = make_encoder(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="holds other text features: encoder_sha256"):
        extract_text_features(captions, T5Encoder(other), made, BATCH)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("features.npy", lambda old: old[:-64], "truncated"),
        ("features.npy", lambda old: old[:-1] + bytes([old[-1] ^ 1]), "does not match the SHA-256"),
        ("captions.json", lambda old: old.replace(b"A", b"B", 1), "does not match the SHA-256"),
        ("offsets.npy", lambda old: old[:-8] + b"\0" * 8, "does not match the SHA-256"),
        ("meta.json", lambda old: old.replace(b'"version": 1', b'"version": 2'), "expected .* version 1, found"),
        ("meta.json", lambda old: old[:20], "EOF while parsing"),
        ("meta.json", lambda old: b"[1]", "should be an object"),
        ("meta.json", lambda old: old.replace(b'"encoder"', b'"other"'), "does not name the encoder"),
        ("meta.json", lambda old: old.replace(b'"offsets.npy"', b'"other"'), "does not match the SHA-256"),
    ],
)
def test_damaged_features_are_refused(made, tmp_path, name, change, words):
    path = tmp_path / "text"
    path.mkdir()
    for file, content in contents(made).items():
        (path / file).write_bytes(change(content) if file == name else content)
    with pytest.raises(InputError, match=words):
        TextFeatures.load(path)


def test_features_are_verified_once_and_again_when_they_change(made, tmp_path, monkeypatch):
    path, read = shutil.copytree(made, tmp_path / "text"), []
    monkeypatch.setattr(text, "hash_file", lambda file: read.append(file.name) or hash_file(file))
    for _ in range(2):
        TextFeatures.load(path)
    assert read.count("features.npy") == 1
    TextFeatures.load(path, verify=True)
    assert read.count("features.npy") == 2
    content = bytearray((path / "features.npy").read_bytes())
    content[-1] ^= 1
    (path / "features.npy").write_bytes(content)
    for _ in range(2):
        with pytest.raises(InputError, match="does not match the SHA-256"):
            TextFeatures.load(path)


def test_features_that_are_shortened_while_they_are_read_are_told(made, tmp_path):
    path = tmp_path / "text"
    shutil.copytree(made, path)
    features = TextFeatures.load(path)
    os.truncate(path / "features.npy", 200)
    with pytest.raises(InputError, match=r"features.npy was shortened from \d+ to 200 bytes while it was read"):
        features.batch([0])


def test_offsets_that_give_a_caption_no_rows_of_its_own_are_refused(made, tmp_path):
    path = tmp_path / "text"
    shutil.copytree(made, path)
    offsets = np.load(path / "offsets.npy")
    for wrong in (offsets[::-1].copy(), offsets + 1, offsets[:-1], np.r_[0, 10**15, offsets[2:]]):
        np.save(path / "offsets.npy", wrong)
        meta = json.loads((path / "meta.json").read_text())
        meta["sha256"]["offsets.npy"] = hash_file(path / "offsets.npy")
        (path / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(MissingArtifact, match="does not give each caption rows of its own"):
            TextFeatures.load(path)


def test_a_damaged_shard_is_removed_and_made_again(encoder, captions, made, tmp_path, monkeypatch):
    def damage(shards, *_):
        shards[1].write_bytes(b"damaged")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(text, "_join", damage)
        extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", BATCH)
    with pytest.raises(InputError, match="the shard was removed, and the same command makes it again"):
        extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", BATCH)
    extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", BATCH)
    assert contents(tmp_path / "text") == contents(made)


def test_an_encoder_that_is_absent_or_incomplete_is_refused(encoder, captions, tmp_path):
    with tells("make weights NAME=flan-t5-xl"):
        extract_text_features(captions, T5Encoder(tmp_path / "none"), tmp_path / "text")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file, content in contents(encoder).items():
        (broken / file).write_bytes(content)
    config = json.loads((broken / "config.json").read_text()) | {"num_layers": 3}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"do not fit its config\.json: [1-9][0-9]* missing .*encoder\.block\.2"):
        extract_text_features(captions, T5Encoder(broken), tmp_path / "text")
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot load a T5 encoder"):
        extract_text_features(captions, T5Encoder(broken), tmp_path / "text")
    assert not (tmp_path / "text").exists()
    with pytest.raises(InputError, match="dtype must be one of bfloat16, float32"):
        extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", dtype="float16")


def test_captions_that_lose_all_or_a_part_of_their_text_are_told(encoder, captions, tmp_path, caplog):
    extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", BATCH)
    assert "1 of 12 captions are empty after LlamaGen's cleaning, the first is caption 11 ('')" in caplog.text
    assert "1 of 12 captions have 120 tokens or more; the rest is cut" in caplog.text


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_code_in_the_directory_of_an_encoder_is_not_run(encoder, captions, tmp_path, name):
    directory, marker = tmp_path / "encoder", tmp_path / "marker"
    shutil.copytree(encoder, directory)
    (directory / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    content = json.loads((directory / name).read_text())
    auto = {"AutoTokenizer": ["own.Own", "own.Own"], "AutoConfig": "own.Own", "AutoModel": "own.Own"}
    changed = content | {"auto_map": auto, "tokenizer_class": "Own", "model_type": "own"}
    (directory / name).write_text(json.dumps(changed))
    with contextlib.suppress(InputError):
        extract_text_features(captions, T5Encoder(directory), tmp_path / "text", BATCH)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[1]", b'{"d_model": "x", "model": 1}', b"\xff" * 64])
def test_a_damaged_encoder_is_one_clear_error(encoder, captions, tmp_path, name, content):
    directory = tmp_path / "encoder"
    shutil.copytree(encoder, directory)
    (directory / name).write_bytes(content)
    with pytest.raises(InputError, match=r"cannot load a T5 encoder from .*; download it again"):
        extract_text_features(captions, T5Encoder(directory), tmp_path / "text", BATCH)


def test_features_that_a_killed_process_had_renamed_are_found(made, encoder, captions, tmp_path):
    for use in (
        lambda path: TextFeatures.load(path),
        lambda path: extract_text_features(captions, T5Encoder(encoder), path, BATCH),
    ):
        path = tmp_path / "text"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(made, tmp_path / ".text.old")
        use(path)
        assert {file.name for file in tmp_path.iterdir()} == {"text", ".text.verified.json"}


def test_two_commands_do_not_make_the_same_features_at_once(encoder, captions, tmp_path, monkeypatch):
    second = []

    def join(*arguments):
        with pytest.raises(InputError, match=r"another process is using .*shards"):
            extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", BATCH)
        second.append(True)
        return whole(*arguments)

    whole = text._join
    monkeypatch.setattr(text, "_join", join)
    extract_text_features(captions, T5Encoder(encoder), tmp_path / "text", BATCH)
    assert second and [path.name for path in tmp_path.iterdir()] == ["text"]
