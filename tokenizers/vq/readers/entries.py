"""The files of a zip or a tar, as when it is unpacked: one rule for names that occur twice, and for links."""

import contextlib
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from masc.runtime.errors import InputError
from masc.runtime.reading import reason
from vq.readers.members import is_visible

Place = TypeVar("Place")


@contextlib.contextmanager
def opening(path: Path, kind: str) -> Iterator[None]:
    """Turn what a library raises while it reads an archive, "zip" or "tar", into InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile and tarfile raise errors of many types for damaged bytes
        raise InputError(
            f"{path} is not a {kind}, or it is truncated ({reason(error, path)}); download it again"
        ) from error


@dataclass
class Entries(Generic[Place]):
    """What an archive holds; a name stands for the last entry that has it."""

    files: dict[str, Place] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)  # name -> name of the target
    folders: list[str] = field(default_factory=list)

    def add_file(self, name: str, place: Place) -> None:
        """Add a file, in the order stored."""
        self.links.pop(name, None)
        self.files[name] = place

    def add_link(self, name: str, target: str) -> None:
        """Add a symbolic link, in the order stored; `target` begins at the folder of the link."""
        self.files.pop(name, None)
        self.links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))

    def add_hard_link(self, name: str, target: str) -> None:
        """Add another name for the entry that `target` is now: a later file of that name does not change it."""
        if target in self.files:
            self.add_file(name, self.files[target])
        else:
            self.files.pop(name, None)
            self.links[name] = target

    def follow_links(self, archive: Path) -> None:
        """Give each link the file that it leads to.

        Raises InputError for a visible link that leads to a folder, to no file of the archive, or in a circle."""
        folders = parents((*self.files, *self.folders)) | set(self.folders) if self.links else set()
        for name in filter(is_visible, self.links):
            target, passed = name, set()
            while target in self.links and target not in passed:
                passed.add(target)
                target = self.links[target]
            if target not in self.files:
                what = "which is a folder" if target in folders else "which is no file in it"
                raise InputError(
                    f"{archive} holds the link {name!a} to {target!a}, {what}; pack it again with the files in place "
                    "of links (tar --dereference, or zip without -y)"
                )
            self.links.update(dict.fromkeys(passed, target))  # so that a long chain is followed once
        self.files |= {name: self.files[target] for name, target in self.links.items() if target in self.files}


def parents(names: Iterable[str]) -> set[str]:
    """All folders above some names."""
    found: set[str] = set()
    for name in names:
        while (name := posixpath.dirname(name)) and name not in found:
            found.add(name)
    return found
