"""The file that wandb writes of a run: a LevelDB log (a header, then blocks of records) of protobuf records."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from masc.runtime.reading import read_bytes

FILE_HEADER, RECORD_HEADER, BLOCK = 7, 7, 1 << 15
FULL, LAST = 1, 4  # kinds of a record's part: the whole record, or its end


def mend_log(file: Path) -> set[int]:
    """The steps of the rows in a .wandb file, which is cut at the end of its last whole record.

    A killed run may leave half a record, at which `wandb sync` stops. Raises errors of any type for another content."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, steps, whole = read_bytes(file), set(), 0
    for content, end in _records(data):
        whole = end
        for item in Record.FromString(content).history.item:
            if "_step" in (item.key, *item.nested_key):
                steps.add(int(json.loads(item.value_json)))
    if whole < len(data):
        os.truncate(file, whole)
    return steps


def _records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The whole records, each with the place of its end."""
    position, record = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER:  # the end of a block is padded
            position += left
            continue
        start = position + RECORD_HEADER
        position, kind = start + int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if position > len(data):
            return
        record += data[start:position]
        if kind in (FULL, LAST):
            yield record, position
            record = b""
