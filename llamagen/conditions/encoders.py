"""Text encoders: FLAN-T5-XL, which the released models know, and WordLlama's vectors, which a package ships.

`T5Encoder` follows LlamaGen at ce98ec4 (language/t5.py): captions are cut at 120 tokens and padded on the right for the
encoder, which computes in bfloat16.

`WordLlama` is a small real encoder for a machine without downloads: the vectors of 32,000 word pieces, 256 numbers
each, which the package wordllama holds in its wheel. They are learned, from the token vectors of Llama 2 70B, Phi 3 and
others, so that their mean over a text tells texts apart. They are not contextual: a word piece has the same vector in
every caption. Only two files of the package are read; its code is not imported.

Shapes: C the encoder's width."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file
from masc.runtime.reading import reason

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
Encode = Callable[[Sequence[str], int], Iterator[np.ndarray]]


class TextEncoder(Protocol):
    """What text features are made by."""

    @property
    def name(self) -> str:
        """Its name in the features."""

    @property
    def max_tokens(self) -> int:
        """The most tokens of a caption; the rest is cut."""

    def sha256(self) -> str:
        """SHA-256 over the files that load. Raises InputError if they are missing."""

    def load(self, dtype: str, device: torch.device) -> Encode:
        """A function of clean captions and a batch size, which gives the features of each caption without padding,
        (length, C), as bit patterns of bfloat16. Raises InputError for files that are damaged."""


def _sha256_of(files: Sequence[Path]) -> str:
    return hashlib.sha256("".join(f"{path.name} {hash_file(path)}\n" for path in files).encode()).hexdigest()


def _bits(features: Tensor) -> np.ndarray:
    return features.to(torch.bfloat16).view(torch.int16).cpu().numpy().view(np.uint16)


@dataclass(frozen=True)
class T5Encoder:
    """The encoder of a T5 model in a directory in the layout of the hub; nothing is unpickled or executed."""

    directory: Path
    max_tokens: int = 120  # LlamaGen's cls_token_num for text

    @property
    def name(self) -> str:
        return self.directory.name

    def sha256(self) -> str:
        """SHA-256 over configuration, tokenizer and weights: names and contents of the files that load."""
        suffixes = (".json", ".model", ".safetensors", ".bin")
        files = [path for path in sorted(self.directory.glob("*")) if path.suffix in suffixes]
        if not (self.directory / "config.json").exists() or len(files) < 2:
            raise MissingArtifact(
                "weights",
                self.directory,
                f"no text encoder at {self.directory}: expected config.json, a tokenizer and weights as on the Hugging "
                "Face hub; LlamaGen's is flan-t5-xl",
                name="flan-t5-xl",
            )
        return _sha256_of(files)

    def load(self, dtype: str, device: torch.device) -> Encode:
        from transformers import AutoTokenizer, T5EncoderModel

        try:
            # Left out, `trust_remote_code` would ask at a terminal whether to run the directory's own Python files.
            options = {"local_files_only": True, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(self.directory, **options)
            model, found = T5EncoderModel.from_pretrained(
                self.directory, dtype=DTYPES[dtype], output_loading_info=True, **options
            )
        except Exception as error:  # the library raises errors of any type for damaged files
            raise InputError(
                f"cannot load a T5 encoder from {self.directory} ({reason(error)}); download it again"
            ) from error
        # The library would fill missing tensors with random numbers.
        unfit = sorted(map(str, found["missing_keys"] | found["mismatched_keys"]))
        if unfit:
            raise InputError(
                f"the weights in {self.directory} do not fit its config.json: {len(unfit)} missing or of another "
                f"shape, {', '.join(unfit[:3])}, ...; download the encoder again"
            )
        model.eval().to(device)
        return lambda texts, batch_size: self._encode(texts, tokenizer, model, batch_size)

    @torch.no_grad()
    def _encode(self, texts: Sequence[str], tokenizer: Any, model: nn.Module, batch_size: int) -> Iterator[np.ndarray]:
        """The last hidden state of each caption."""
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            # A short batch is filled up with its last caption: in another shape the library may sum in another order.
            filled = batch + batch[-1:] * (batch_size - len(batch))
            tokens = tokenizer(
                filled,
                max_length=self.max_tokens,
                padding="max_length",
                padding_side="right",
                truncation=True,
                return_attention_mask=True,
                return_tensors="pt",
            ).to(model.device)
            hidden = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
            bits, lengths = _bits(hidden), tokens["attention_mask"].sum(1).tolist()
            yield from (bits[row, : lengths[row]] for row in range(len(batch)))


@dataclass(frozen=True)
class WordLlama:
    """The vectors of word pieces in the package wordllama: the table `l2_supercat` of width 256."""

    max_tokens: int = 20  # the longest name of an emoji has 19 word pieces
    name = "wordllama"
    dim = 256

    def _files(self) -> tuple[Path, Path]:
        """The table, and the tokenizer that its rows belong to."""
        found = find_spec("wordllama")
        if found is None or not found.submodule_search_locations:
            raise InputError(
                "the encoder wordllama needs the package of that name from this project's extra `t2i`, which holds its "
                "vectors; install the extra with pip install -e '.[t2i]', or take another encoder=..."
            )
        folder = Path(found.submodule_search_locations[0])
        files = folder / "weights/l2_supercat_256.safetensors", folder / "tokenizers/l2_supercat_tokenizer_config.json"
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise InputError(
                f"the package wordllama lacks {' and '.join(missing)}; install the version of requirements.txt"
            )
        return files

    def sha256(self) -> str:
        return _sha256_of(self._files())

    def load(self, dtype: str, device: torch.device) -> Encode:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        weights, pieces = self._files()
        try:
            table, tokenizer = load_file(weights)["embedding.weight"], Tokenizer.from_file(str(pieces))
        except Exception as error:  # both libraries raise errors of any type for damaged files
            raise InputError(
                f"cannot load the vectors of {weights.parent.parent} ({reason(error)}); install wordllama again"
            ) from error
        if table.ndim != 2 or tokenizer.get_vocab_size() > len(table):
            raise InputError(
                f"expected a vector for each of {tokenizer.get_vocab_size()} word pieces in {weights}, found "
                f"{tuple(table.shape)}; install the version of wordllama in requirements.txt"
            )
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return lambda texts, batch_size: self._encode(texts, tokenizer, _bits(table))

    def _encode(self, texts: Sequence[str], tokenizer: Any, bits: np.ndarray) -> Iterator[np.ndarray]:
        """The vectors of each caption's word pieces; an empty caption has none."""
        for text in texts:
            pieces = tokenizer.encode(text, add_special_tokens=False).ids[: self.max_tokens]
            yield bits[np.array(pieces, np.int64)]
