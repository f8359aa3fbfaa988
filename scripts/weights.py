"""Download released checkpoints, and the files that evaluations read (`make weights`)."""

from dataclasses import dataclass, field
from pathlib import Path

from stage import run_stage

from vq.hub.fetch import fetch, listing


@dataclass(kw_only=True)
class WeightsStage:
    names: list[str] = field(default_factory=list)
    folder: str = "weights"


def main(stage: WeightsStage) -> None:
    """Write weights/<file>, verified, for each name; list the names if none is given."""
    if stage.names in ([], ["all"]):
        print(f"say which: make weights NAME=vq_ds16_c2i,c2i_B_256\n{listing()}")
    for name in stage.names if stage.names != ["all"] else []:
        print(fetch(name, Path(stage.folder)))


if __name__ == "__main__":
    run_stage("weights", WeightsStage, main)
