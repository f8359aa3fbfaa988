"""What a folder holds, and a small folder to write."""

from masc.runtime.files import replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_folder(path, text):
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text(text)
