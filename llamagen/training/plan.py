"""What a training takes before it is started: parameters, FLOPs, hours, disk, and memory on each GPU.

Nothing is read but configs. A tree of the same number of clusters stands in for the one that is not made yet."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from llamagen.backbones.base import DataShape
from llamagen.model import ARModel, build_model, count_parameters
from llamagen.training.compute import PARALLEL
from llamagen.training.config import TrainConfig
from llamagen.training.footprint import (
    StepCost,
    is_measurable,
    measure_evaluation,
    measure_state,
    measure_step,
    with_flat_head,
    without_numbers,
)
from llamagen.training.parallel import recompute
from llamagen.training.warm import freeze
from masc.heads.losses import WHOLE
from masc.runtime.errors import InputError
from masc.tree import Tree
from vq.interface import TokenizerConfig
from vq.readers.imagenet import NUM_IMAGES

GIB = 2**30
# Name -> peak of dense bf16 products in TFLOPs, and usable GiB; the makers' data sheets.
GPUS = {
    "a100-40": (312, 39),
    "a100": (312, 79),
    "h100": (989, 79),
    "h100-pcie": (756, 79),
    "h200": (989, 139),
    "b200": (2250, 178),
    "l40s": (362, 44),
    "rtx4090": (165, 23.5),
}
FEWEST, MOST = 8, 512  # images of the steps that are measured
VALIDATED = 64  # images a batch of a validation, the default of `image_nats`
# Blocks that are whole at once under FSDP: this one, the next one, and the buffer that they are gathered in. On two
# processes of a CPU the peak of each was 958 MiB with this number, and the plan says 988.
GATHERED_BLOCKS = 3


@dataclass(kw_only=True)
class PlanConfig(TrainConfig):
    """The config of a run, and of the machine that it is planned for."""

    gpus: int = 1  # of a machine
    nodes: int = 1  # machines
    gpu: str = "h100"  # one of GPUS
    peak_tflops: float | None = None  # of a GPU; None: that of `gpu` in bf16
    memory_gib: float | None = None  # of a GPU; None: that of `gpu`
    reserved_gib: float = 4.0  # CUDA's context, NCCL, workspaces and gaps between tensors: not measured
    mfu: float = 0.4  # share of the peak that is reached
    num_images: int | None = None  # of the training data; None: ImageNet's, or not known
    num_classes: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpu not in GPUS:
            raise ValueError(
                f"gpu must be one of {', '.join(GPUS)}, found {self.gpu!r}; or give peak_tflops, memory_gib"
            )
        numbers = (self.gpus, self.nodes, self.mfu, self.num_classes, self.peak_tflops or 1, self.memory_gib or 1)
        if min(numbers) <= 0 or self.mfu > 1 or self.reserved_gib < 0:
            raise ValueError(
                "gpus, nodes, num_classes, peak_tflops, memory_gib and mfu must be positive, and mfu at most 1"
            )


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by what they hold, for one way to train."""

    parallel: str
    recomputes: bool
    weights: float
    optimizer: float
    average: float
    gradients: float  # that stay while other images are computed
    gathered: float  # whole parameters and gradients of some blocks, under FSDP
    first: float  # activations and temporaries of no image
    each: float  # and of an image
    validation: float  # in place of gradients, gathered blocks and activations

    def peak(self, images: float) -> float:
        """With as many images a micro-batch."""
        step = self.gradients + self.gathered + self.first + self.each * images
        return self.weights + self.optimizer + self.average + max(step, self.validation)

    def fitting(self, capacity: float) -> int:
        """The most images a micro-batch; 0: not one fits."""
        if self.peak(1) > capacity:
            return 0
        held = self.peak(0) - max(0.0, self.validation - self.gradients - self.gathered - self.first)
        return int((capacity - held) / self.each)


@dataclass(frozen=True)
class Plan:
    """The numbers of a plan; bytes and FLOPs."""

    config: PlanConfig
    shape: DataShape
    precision: str
    parameters: int
    of_head: int
    is_exact: bool  # whether the head itself was measured, or a flat one of as many weights
    image_flops: float  # of the forward pass of an image
    again_flops: float  # those of it that recomputed activations take once more
    memory: list[Memory]  # empty where it was not asked for
    checkpoint: float  # bytes
    codes: float | None  # bytes; None: the number of images is not known

    @property
    def processes(self) -> int:
        return self.config.gpus * self.config.nodes

    @property
    def share(self) -> float:
        """Images of a step on each GPU."""
        return self.config.batch_size / self.processes

    @property
    def step_flops(self) -> float:
        """Three forward passes: the gradients of inputs and of weights take one each."""
        return 3 * self.image_flops * self.config.batch_size

    @property
    def validation_flops(self) -> float:
        """Of all validations, diagnostics apart; 0 where the number of images is not known."""
        count = self.config.steps // self.config.evaluate_every + 1
        return self.image_flops * images_of(self.config).get("val", 0) * count

    @property
    def peak_flops(self) -> float:
        """FLOPs a second of a GPU; TF32, which float32 is computed in, has half of bf16's."""
        if self.config.peak_tflops is not None:
            return 1e12 * self.config.peak_tflops
        return 1e12 * GPUS[self.config.gpu][0] * (1 if self.precision == "bf16" else 0.5)

    def hours(self, flops: float) -> float:
        return flops / (self.peak_flops * self.config.mfu * self.processes) / 3600

    @property
    def most_checkpoints(self) -> int:
        """Checkpoints at once: those that are kept, and one more while it is written."""
        config = self.config
        return config.keep_last + 1 + (config.steps // config.keep_every if config.keep_every else 0)

    @property
    def capacity(self) -> float:
        """Bytes of a GPU that training can use."""
        given = self.config.memory_gib
        return GIB * ((GPUS[self.config.gpu][1] if given is None else given) - self.config.reserved_gib)


def images_of(config: PlanConfig) -> dict[str, int]:
    """The images of each split, as far as they are known."""
    known = NUM_IMAGES if config.data.source == "imagenet" else {}
    return known | ({} if config.num_images is None else {"train": config.num_images})


def make_plan(config: PlanConfig, tokenizer: TokenizerConfig, with_memory: bool = True) -> Plan:
    """The plan of a run; without memory it takes a tenth of the time.

    Raises InputError for images that the tokenizer cannot cut into tokens, and for a run with a loss beside its head,
    whose memory is not measured."""
    if config.loss.kind != "ce":
        raise InputError(
            f"a plan counts a run that is trained by cross-entropy, found the loss {config.loss.name}; leave LOSS out: "
            "what the loss takes comes on top"
        )
    shape = _shape_of(config, tokenizer)
    own = partial(_build, config, shape, False)
    precision = "bf16" if config.precision == "auto" else config.precision
    sizes = _sizes(own)
    again = partial(_build, config, shape, True)
    few = _images_measured(sizes.rows, shape.num_positions) if with_memory else 1
    if not (is_exact := is_measurable(own, 2 * few)):
        own, again = partial(with_flat_head, own), partial(with_flat_head, again)
    validated = VALIDATED if with_memory else 1
    validation, flops = measure_evaluation(own, validated, precision)
    memory = []
    for build, recomputes in ((own, False), (again, True)) if with_memory else ():
        costs = {images: measure_step(build, config.optim, images, precision) for images in (few, 2 * few)}
        memory += [
            _memory(config, costs, sizes, validation, parallel, recomputes)
            for parallel in (PARALLEL if config.gpus * config.nodes > 1 else ["ddp"])
        ]
    weights, state = measure_state(own, config.optim)
    image_flops = flops / validated
    return Plan(
        config,
        shape,
        precision,
        sizes.parameters,
        sizes.of_head,
        is_exact,
        image_flops,
        image_flops - 2 * sizes.of_head * shape.num_positions,
        memory,
        weights + (weights if config.ema_decay else 0) + state,
        _codes(config, shape),
    )


def _images_measured(rows: int, positions: int) -> int:
    """Images from which on memory grows in a line: beyond `WHOLE` scores a head computes in chunks."""
    few = WHOLE // (rows * positions) + 1
    return max(FEWEST, few) if few <= MOST else FEWEST


@dataclass(frozen=True)
class _Sizes:
    parameters: int
    of_head: int
    rows: int  # of the head's largest table
    largest_block: int
    outside_blocks: int


def _sizes(build: Callable[[], ARModel]) -> _Sizes:
    with without_numbers():
        model = build()
        blocks = [sum(each.numel() for each in block.parameters()) for block in model.backbone.blocks()]
        whole = count_parameters(model)
        of_head = sum(parameter.numel() for parameter in model.head.parameters())
        rows = max((len(table) for table in model.head.tables()), default=1)
        return _Sizes(whole, of_head, rows, max(blocks), whole - sum(blocks))


def _memory(
    config: PlanConfig, costs: dict[int, StepCost], sizes: _Sizes, validation: int, parallel: str, recomputes: bool
) -> Memory:
    processes, (few, many), cost = config.gpus * config.nodes, costs, next(iter(costs.values()))
    is_sharded = parallel == "fsdp"
    parts = processes if is_sharded else 1
    # Gradients come as activations go, unless micro-batches follow or DDP keeps them in its buckets.
    is_once = config.micro_batches == 1 and (is_sharded or processes == 1)
    small, large = (each.work if is_once and not is_sharded else each.activations for each in costs.values())
    slope = (large - small) / (many - few)
    gathered = 4 * (GATHERED_BLOCKS * sizes.largest_block + 2 * sizes.outside_blocks) if is_sharded else 0
    return Memory(
        parallel=parallel,
        recomputes=recomputes,
        weights=cost.weights / parts,
        optimizer=cost.state / parts,
        average=cost.weights / parts if config.ema_decay else 0,
        gradients=0 if is_once else cost.gradients / parts,
        gathered=gathered,
        first=small - slope * few,
        each=slope,
        validation=validation + (cost.weights if is_sharded else 0),
    )


def _build(config: PlanConfig, shape: DataShape, recomputes: bool) -> ARModel:
    counts = np.ones(shape.num_tokens, np.int64) if config.head.uses_counts else None
    tree = balanced_tree(shape.num_tokens) if config.head.uses_tree else None
    model = build_model(config.model, config.head, shape, tree, config.seed, counts)
    freeze(model, config.frozen)
    if recomputes:
        for block in model.backbone.blocks():
            recompute(block)
    return model


def balanced_tree(num_tokens: int) -> Tree:
    """A tree over N tokens that joins the two oldest clusters again and again."""
    children = np.arange(2 * num_tokens - 2).reshape(-1, 2)
    sizes = np.ones(2 * num_tokens - 1)
    for made, (left, right) in enumerate(children, num_tokens):
        sizes[made] = sizes[left] + sizes[right]
    return Tree(np.column_stack([children, np.arange(1, num_tokens), sizes[num_tokens:]]))


def _shape_of(config: PlanConfig, tokenizer: TokenizerConfig) -> DataShape:
    with without_numbers():
        built = tokenizer.build()
    side, remainder = divmod(config.data.resolution, built.downsample)
    if remainder:
        raise InputError(
            f"{config.data.name} has images of {config.data.resolution} pixels a side, and a token of {tokenizer.name} "
            f"covers {built.downsample}; choose another TOKENIZER"
        )
    return DataShape(built.num_tokens, config.num_classes, side * side)


def _codes(config: PlanConfig, shape: DataShape) -> float | None:
    """Bytes of the packed codes."""
    images = images_of(config)
    if "train" not in images:
        return None
    width = 2 if shape.num_tokens <= 2**16 else 4
    views = {split: len(config.data.views(split).names) for split in images}
    return sum(images[split] * views[split] for split in images) * shape.num_positions * width
