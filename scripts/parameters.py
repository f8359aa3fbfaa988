"""Print the exact number of parameters of every size and vocabulary (`make parameters`)."""

from dataclasses import dataclass, field

from stage import CONFIGS, load_config, run_stage
from words import override

from llamagen.backbones.base import DataShape
from llamagen.model import build_model, count_parameters
from llamagen.training.config import TrainConfig
from masc.heads.config import FlatConfig


@dataclass(kw_only=True)
class ParametersStage:
    models: list[str] = field(default_factory=list)  # none: all of configs/model
    vocabularies: list[int] = field(default_factory=lambda: [16384, 8192, 4096, 2048])
    num_classes: int = 1000


def count(model: str, vocabulary: int, num_classes: int) -> int:
    """Parameters of a model that embeds and predicts `vocabulary` tokens (or clusters: MASC's K)."""
    import torch  # stage.py comes first: it pins the environment that torch reads when it is imported

    config = load_config("train", TrainConfig, [override("model", model)]).model
    with torch.device("meta"):
        shape = DataShape(vocabulary, num_classes, num_positions=256)
        return count_parameters(build_model(config, FlatConfig(name="flat"), shape, None, seed=0))


def main(stage: ParametersStage) -> None:
    """Print exact counts: the body without token embedding and output matrix, then the whole by vocabulary."""
    models = stage.models or sorted(file.stem for file in (CONFIGS / "model").glob("*.yaml"))
    heads = "".join(f"{vocabulary:>16,}" for vocabulary in stage.vocabularies)
    print(f"{'model':18}{'body':>16}{heads}")
    for model in models:
        width = load_config("train", TrainConfig, [override("model", model)]).model.dim
        counts = [count(model, vocabulary, stage.num_classes) for vocabulary in stage.vocabularies]
        body = counts[0] - 2 * stage.vocabularies[0] * width
        print(f"{model:18}{body:>16,}" + "".join(f"{number:>16,}" for number in counts))


if __name__ == "__main__":
    run_stage("parameters", ParametersStage, main)
