"""A small tokenizer and settings for the extraction of codes."""

from vq.codes.shards import ExtractConfig, Shards
from vq.interface import TokenizerConfig

SMALL = TokenizerConfig(
    name="small", target="vq.autoencoder:ConvVQ", options={"resolution": 16, "num_tokens": 32, "width": 16}
)
EMOJI = TokenizerConfig(name="emoji32", target="vq.autoencoder:ConvVQ")
NUM_IMAGES = 50
SETTINGS = ExtractConfig(num_workers=0)


def content(path):
    """The bytes of the files of a folder, by name."""
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
