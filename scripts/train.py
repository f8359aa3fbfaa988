"""Train a run, or resume it (`make train`); on the embedded data, make what it is trained on as well."""

from codebook import CodebookStage
from codebook import main as make_codebook
from codes import CodesStage
from codes import main as make_codes
from stage import load_config, run_stage
from words import override
from worker import is_main, num_started

from llamagen.train import check_run, train
from llamagen.training.config import TrainConfig
from masc.runtime.codes import has_codes


def make_inputs(config: TrainConfig) -> None:
    """Make what is missing of a run's codebook, codes and tree, if its data is embedded.

    Elsewhere that takes hours, and is asked for."""
    if config.data.source != "twemoji":
        return
    layout = config.layout
    paths = [layout.codes(config.data.name, split) for split in ("train", "val")]
    if not has_codes(paths[1]) or (config.loss.near and not has_codes(paths[0], config.loss.near)):
        given = [override("tokenizer", config.tokenizer_name), override("artifacts", config.artifacts)]
        make_codebook(load_config("codebook", CodebookStage, given))
        stage = load_config("codes", CodesStage, given)
        stage.data, stage.near = config.data, config.loss.near
        make_codes(stage)
    if config.uses_tree:
        codebook = layout.load_codebook()
        cuts = config.cuts(codebook.num_tokens)
        layout.check_cuts(config.tree, cuts, codebook)
        layout.make_tree(config.tree, cuts[-1], codebook)


def main(config: TrainConfig) -> None:
    """Train runs/<model>/<head>/seed<seed>; the same command resumes it after an interruption."""
    directory = train(config)
    if is_main():
        print(directory)


def check(config: TrainConfig) -> None:
    """Raise the InputError that the processes to be started would raise."""
    check_run(config, num_started())


if __name__ == "__main__":
    run_stage("train", TrainConfig, main, make_inputs, check)
