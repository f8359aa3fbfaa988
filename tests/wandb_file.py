"""What wandb has written of a run."""

import json
from pathlib import Path
from typing import Any

from llamagen.training.wandb_log import _records


def logged(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The logged rows in order, and the config."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, config = [], {}
    for data, _ in _records(file.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        for update in (*record.config.update, *record.run.config.update):
            config["/".join(update.nested_key) or update.key] = json.loads(update.value_json)
    return rows, config
