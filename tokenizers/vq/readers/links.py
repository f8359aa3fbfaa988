"""Images of both splits: files that are in train and in val because of links."""

import logging
import re
from pathlib import Path

import numpy as np

from vq.readers.folders import tars_of_split
from vq.readers.members import Members, OnDisk, list_folder

logger = logging.getLogger(__name__)


def warn_of_shared(members: Members, root: Path, split: str) -> None:
    """Log a warning if files with images of a split below `root` are those of the other split too.

    The other split is listed only if a file of this one may have another name, because listing takes long."""
    other, here = "val" if split == "train" else "train", members.on_disk()
    if not here.are_linked:
        return
    there = [OnDisk.of(tars_of_split(root, other)).numbers]
    for path in root.iterdir():
        if re.fullmatch(rf"{other}(\d{{4}})?(\.zip)?", path.name, re.IGNORECASE):
            there.append((list_folder(path).on_disk() if path.is_dir() else OnDisk.of([path])).numbers)
    shared = np.flatnonzero(np.isin(here.numbers, np.concatenate(there)))
    if shared.size:
        logger.warning(
            "%d of the %d files with images of %s in %s are those of %s too because of links, the first is %s: the "
            "images held out would be those of the training; remove the links",
            *(shared.size, len(here.names), split, root, other, here.names[shared[0]]),
        )
