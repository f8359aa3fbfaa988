"""Print what a training takes before it is started (`make plan`)."""

from stage import named_config, run_stage

from llamagen.training.plan import PlanConfig, make_plan
from llamagen.training.plan_page import page
from masc.runtime.errors import InputError


def main(config: PlanConfig) -> None:
    """Print parameters, FLOPs, hours, disk, and memory on each GPU for each way to train. Nothing but configs is read.

    The keys of the machine are gpus, nodes, gpu, peak_tflops, memory_gib, reserved_gib and mfu; num_images and
    num_classes describe data other than ImageNet."""
    tokenizer = named_config("tokenizer", config.tokenizer_name)
    if tokenizer is None:
        raise InputError(f"there is no tokenizer called {config.tokenizer_name!r}; write configs/tokenizer/NAME.yaml")
    print(page(make_plan(config, tokenizer)))


if __name__ == "__main__":
    run_stage("train", PlanConfig, main)
