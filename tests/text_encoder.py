"""A small text encoder in exactly the layout of the hub."""

import json

import torch

WORDS = ["a", "photo", "of", "two", "cats", "and", "the", "dog", "on", "green", "mat", "in", "rain", "under", "trees"]


def make_encoder(directory, seed=0):
    """A directory laid out as google/flan-t5-xl's: config.json, tokenizer.json, tokenizer_config.json, weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    T5ForConditionalGeneration(T5Config(vocab_size=64, feed_forward_proj="gated-gelu", **sizes)).save_pretrained(
        directory
    )
    return directory
