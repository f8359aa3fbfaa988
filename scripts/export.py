"""Write a run's weights as a checkpoint of LlamaGen (`make export RUN=...`)."""

from dataclasses import dataclass
from pathlib import Path

from stage import run_stage

from llamagen.backbones.official import save_official
from llamagen.runs import Run


@dataclass(kw_only=True)
class ExportStage:
    run: str  # its directory
    path: str | None = None  # None: <run>/llamagen.pt
    use_ema: bool = False  # the averaged weights


def main(stage: ExportStage) -> None:
    """Write {"model": state dict} under the released names: what LlamaGen's own samplers load."""
    path = Path(stage.path or f"{stage.run}/llamagen.pt")
    run = Run(Path(stage.run), stage.use_ema)
    model = run.load_model()
    save_official(model, path)
    grid = model.backbone.grid
    vocabulary = len(model.head.output.weight)
    kind = (
        "tokens" if vocabulary == model.head.num_tokens else "clusters, which LlamaGen's sampler would take for tokens"
    )
    print(f"{path}: grids of {grid} x {grid}, a vocabulary of {vocabulary} {kind}")


if __name__ == "__main__":
    run_stage("export", ExportStage, main)
