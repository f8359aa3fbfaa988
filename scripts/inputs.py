"""Make the inputs of a run on the embedded data: codebook, codes, tree. Elsewhere that takes hours and is asked for."""

from codebook import CodebookStage
from codebook import main as make_codebook
from codes import CodesStage
from codes import main as make_codes
from stage import load_config
from words import override

from llamagen.training.config import TrainConfig


def make_inputs(config: TrainConfig) -> None:
    """Make what is missing of a run's codebook, codes and tree, if its data is embedded."""
    if config.data.source != "twemoji":
        return
    layout = config.layout
    if not (layout.codes(config.data.name, "val") / "meta.json").exists():
        given = [override("tokenizer", config.tokenizer_name), override("artifacts", config.artifacts)]
        make_codebook(load_config("codebook", CodebookStage, given))
        stage = load_config("codes", CodesStage, given)
        stage.data = config.data
        make_codes(stage)
    if config.head.uses_tree:
        codebook = layout.load_codebook()
        cuts = config.head.cuts(codebook.num_tokens)
        layout.check_cuts(config.tree, cuts, codebook)
        layout.make_tree(config.tree, cuts[-1], codebook)
