"""WordLlama's vectors as text features: the package's own rows, in the contract of every encoder."""

import hashlib
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from stage import load_config
from text_features import TextFeaturesStage, main
from user_errors import tells

from llamagen.backbones.config import ModelConfig
from llamagen.conditions import encoders
from llamagen.conditions.captions import Captions
from llamagen.conditions.encoders import WordLlama
from llamagen.conditions.features import TextFeatures, extract_text_features
from llamagen.conditions.images import check_features
from masc.runtime.errors import InputError

TEXTS = ["red apple", "Grinning Face", "sushi", "apple", "a" + " very" * 40 + " long caption", "@nobody"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "text"
    extract_text_features(Captions(TEXTS), WordLlama(), path)
    return path


def package() -> Path:
    return Path(find_spec("wordllama").submodule_search_locations[0])


def test_features_are_the_vectors_of_the_packages_word_pieces_padded_on_the_left(made):
    from tokenizers import Tokenizer

    table = load_file(package() / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    pieces = Tokenizer.from_file(str(package() / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    features, mask = TextFeatures.load(made).batch(range(len(TEXTS)))
    assert features.shape == (6, 20, 256) and mask.sum(1).tolist() == [2, 4, 3, 1, 20, 0]
    for row, text in enumerate(["red apple", "grinning face", "sushi", "apple"]):
        ids = pieces.encode(text, add_special_tokens=False).ids
        torch.testing.assert_close(features[row, 20 - len(ids) :], table[ids].bfloat16().float(), rtol=0, atol=0)
        assert not features[row, : 20 - len(ids)].any()
    assert torch.equal(features[0, -1], features[3, -1])  # not contextual


def test_features_are_equal_on_a_second_run_and_in_batches_of_any_size(made, tmp_path):
    for name, size in (("again", 32), ("single", 1)):
        extract_text_features(Captions(TEXTS), WordLlama(), tmp_path / name, size)
        for file in ("features.npy", "offsets.npy", "captions.json"):
            assert (tmp_path / name / file).read_bytes() == (made / file).read_bytes()


def test_a_caption_that_is_long_or_empty_is_told(made, tmp_path, caplog):
    extract_text_features(Captions(TEXTS), WordLlama(), tmp_path / "text")
    assert "1 of 6 captions are empty after LlamaGen's cleaning, the first is caption 6 ('@nobody')" in caplog.text
    assert "1 of 6 captions have 20 tokens or more; the rest is cut" in caplog.text


def test_the_stage_takes_the_encoder_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("some.txt").write_text("red apple\nsushi\n")
    main(load_config("text_features", TextFeaturesStage, ["captions=some.txt", "encoder=wordllama"]))
    assert "artifacts/text/some: 2 captions, 5 tokens of 256 numbers" in capsys.readouterr().out


def test_features_of_another_encoder_do_not_fit_the_model(made):
    model = ModelConfig(name="text", dim=32, num_layers=1, num_heads=4, condition="text")
    with pytest.raises(InputError, match=r"takes captions of 120 x 2048 numbers, .* holds 20 x 256 by wordllama"):
        check_features(model, TextFeatures.load(made), made)


def test_a_package_that_is_absent_or_damaged_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    with tells(r"needs the package of that name .*install the extra with pip install -e"):
        extract_text_features(Captions(TEXTS), WordLlama(), tmp_path / "text")
    copy = tmp_path / "wordllama"
    for part in ("weights", "tokenizers"):
        shutil.copytree(package() / part, copy / part)
    monkeypatch.setattr(encoders, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(copy)]))
    assert WordLlama().sha256() == hashlib.sha256(_listing(copy)).hexdigest()
    weights = copy / "weights" / "l2_supercat_256.safetensors"
    save_file({"embedding.weight": torch.zeros(100, 256)}, weights)
    with pytest.raises(InputError, match=r"expected a vector for each of 32000 word pieces .* found \(100, 256\)"):
        extract_text_features(Captions(TEXTS), WordLlama(), tmp_path / "text")
    weights.write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match=r"cannot load the vectors of .*install wordllama again"):
        extract_text_features(Captions(TEXTS), WordLlama(), tmp_path / "text")
    weights.unlink()
    with pytest.raises(InputError, match=r"the package wordllama lacks .*l2_supercat_256\.safetensors"):
        extract_text_features(Captions(TEXTS), WordLlama(), tmp_path / "text")
    assert not (tmp_path / "text").exists()


def _listing(folder: Path) -> bytes:
    files = [next(folder.glob("weights/*256.safetensors")), folder / "tokenizers" / "l2_supercat_tokenizer_config.json"]
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return "".join(f"{file.name} {found}\n" for file, found in zip(files, hashes, strict=True)).encode()
