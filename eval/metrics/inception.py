"""The Inception network of FID (inception-2015-12-05), its features and its logits, in plain PyTorch.

torch-fidelity and pytorch-fid load the same network: the same 566 tensors under the same names, with TensorFlow's
quirks (averages that leave out the padding, a maximum in the last block's pool). Differs in speed, not in value: batch
norms are folded into their convolutions in float64, 1 x 1 convolutions of the same input are joined, a 1 x 1
convolution after an average pool is moved before it (both are linear), and memory is channels-last.

Shapes: B images; 2048 pooled features; 2023 spatial features: the first 7 channels of Mixed_6d's first branch, 17 x 17,
in TensorFlow's layout (row, column, channel). ADM uses them for sFID (openai/guided-diffusion,
evaluations/evaluator.py: mixed_6/conv)."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file
from masc.runtime.reading import reason
from metrics.evaluators import NAME, SHA256_PREFIX

FILE = f"pt_{NAME}-{SHA256_PREFIX}.pth"  # name of the published file
POOLED, SPATIAL, CLASSES = 2048, 2023, 1008
SIDE = 299  # pixels of the network's input
SPATIAL_CHANNELS = 7
BATCH_NORM_EPSILON = 0.001

# Convolutions before the blocks: output channels, kernel, stride, padding. A maximum pool follows those of POOL_AFTER.
STEM = {
    "Conv2d_1a_3x3": (32, 3, 2, 0),
    "Conv2d_2a_3x3": (32, 3, 1, 0),
    "Conv2d_2b_3x3": (64, 3, 1, 1),
    "Conv2d_3b_1x1": (80, 1, 1, 0),
    "Conv2d_4a_3x3": (192, 3, 1, 0),
}
POOL_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")

Kernel = int | tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """The branches of a block.

    `heads` are 1 x 1 convolutions of the block's input: name -> output channels. `tails` are the other convolutions:
    name -> input, output channels, kernel, stride. `pool` is the pooling branch: `average` pools the head branch_pool,
    `maximum` pools the block's input for a tail that reads `pool`, `halve` is the branch branch_pool itself."""

    heads: dict[str, int]
    tails: dict[str, tuple[str, int, Kernel, int]]
    joined: tuple[str, ...]
    pool: str = "average"


def _plan_a(pool: int) -> Plan:
    return Plan(
        {"branch1x1": 64, "branch5x5_1": 48, "branch3x3dbl_1": 64, "branch_pool": pool},
        {
            "branch5x5_2": ("branch5x5_1", 64, 5, 1),
            "branch3x3dbl_2": ("branch3x3dbl_1", 96, 3, 1),
            "branch3x3dbl_3": ("branch3x3dbl_2", 96, 3, 1),
        },
        ("branch1x1", "branch5x5_2", "branch3x3dbl_3", "branch_pool"),
    )


def _plan_c(width: int) -> Plan:
    row, column = (1, 7), (7, 1)
    return Plan(
        {"branch1x1": 192, "branch7x7_1": width, "branch7x7dbl_1": width, "branch_pool": 192},
        {
            "branch7x7_2": ("branch7x7_1", width, row, 1),
            "branch7x7_3": ("branch7x7_2", 192, column, 1),
            "branch7x7dbl_2": ("branch7x7dbl_1", width, column, 1),
            "branch7x7dbl_3": ("branch7x7dbl_2", width, row, 1),
            "branch7x7dbl_4": ("branch7x7dbl_3", width, column, 1),
            "branch7x7dbl_5": ("branch7x7dbl_4", 192, row, 1),
        },
        ("branch1x1", "branch7x7_3", "branch7x7dbl_5", "branch_pool"),
    )


def _plan_e(pool: str) -> Plan:
    heads = {"branch1x1": 320, "branch3x3_1": 384, "branch3x3dbl_1": 448}
    tails: dict[str, tuple[str, int, Kernel, int]] = {
        "branch3x3_2a": ("branch3x3_1", 384, (1, 3), 1),
        "branch3x3_2b": ("branch3x3_1", 384, (3, 1), 1),
        "branch3x3dbl_2": ("branch3x3dbl_1", 384, 3, 1),
        "branch3x3dbl_3a": ("branch3x3dbl_2", 384, (1, 3), 1),
        "branch3x3dbl_3b": ("branch3x3dbl_2", 384, (3, 1), 1),
    }
    if pool == "average":
        heads["branch_pool"] = 192
    else:
        tails["branch_pool"] = ("pool", 192, 1, 1)
    joined = ("branch1x1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool")
    return Plan(heads, tails, joined, pool)


BLOCKS = {
    "Mixed_5b": _plan_a(32),
    "Mixed_5c": _plan_a(64),
    "Mixed_5d": _plan_a(64),
    "Mixed_6a": Plan(
        {"branch3x3dbl_1": 64},
        {
            "branch3x3": ("input", 384, 3, 2),
            "branch3x3dbl_2": ("branch3x3dbl_1", 96, 3, 1),
            "branch3x3dbl_3": ("branch3x3dbl_2", 96, 3, 2),
        },
        ("branch3x3", "branch3x3dbl_3", "branch_pool"),
        "halve",
    ),
    "Mixed_6b": _plan_c(128),
    "Mixed_6c": _plan_c(160),
    "Mixed_6d": _plan_c(160),
    "Mixed_6e": _plan_c(192),
    "Mixed_7a": Plan(
        {"branch3x3_1": 192, "branch7x7x3_1": 192},
        {
            "branch3x3_2": ("branch3x3_1", 320, 3, 2),
            "branch7x7x3_2": ("branch7x7x3_1", 192, (1, 7), 1),
            "branch7x7x3_3": ("branch7x7x3_2", 192, (7, 1), 1),
            "branch7x7x3_4": ("branch7x7x3_3", 192, 3, 2),
        },
        ("branch3x3_2", "branch7x7x3_4", "branch_pool"),
        "halve",
    ),
    "Mixed_7b": _plan_e("average"),
    "Mixed_7c": _plan_e("maximum"),
}
SPATIAL_BLOCK = "Mixed_6d"


class Block(nn.Module):
    """Several branches of one input, joined along the channels."""

    def __init__(self, plan: Plan, in_channels: int):
        super().__init__()
        self.plan = plan
        self.heads = nn.Conv2d(in_channels, sum(plan.heads.values()), 1)
        widths = {**plan.heads, "input": in_channels, "pool": in_channels}
        if plan.pool == "halve":
            widths["branch_pool"] = in_channels
        for name, (source, channels, kernel, stride) in plan.tails.items():
            sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
            padding = [side // 2 if stride == 1 else 0 for side in sides]
            self.add_module(name, nn.Conv2d(widths[source], channels, kernel, stride, padding))
            widths[name] = channels
        self.out_channels = sum(widths[name] for name in plan.joined)

    def forward(self, x: Tensor) -> Tensor:
        plan = self.plan
        found = dict(zip(plan.heads, self.heads(x).split(list(plan.heads.values()), 1), strict=True))
        if plan.pool == "average":
            found["branch_pool"] = F.avg_pool2d(found["branch_pool"], 3, 1, 1, count_include_pad=False)
        found = {name: value.relu() for name, value in found.items()} | {"input": x}
        if plan.pool == "maximum":
            found["pool"] = F.max_pool2d(x, 3, 1, 1)
        elif plan.pool == "halve":
            found["branch_pool"] = F.max_pool2d(x, 3, 2)
        for name, (source, *_) in plan.tails.items():
            found[name] = getattr(self, name)(found[source]).relu_()
        return torch.cat([found[name] for name in plan.joined], 1)


class Inception(nn.Module):
    """The network from images to features; `load_inception` loads its weights."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for name, (out_channels, *shape) in STEM.items():
            self.add_module(name, nn.Conv2d(channels, out_channels, *shape))
            channels = out_channels
        for name, plan in BLOCKS.items():
            self.add_module(name, Block(plan, channels))
            channels = getattr(self, name).out_channels
        self.fc = nn.Linear(POOLED, CLASSES)
        self.sha256 = ""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, 299, 299) float in [0, 255] -> pooled features (B, 2048), spatial features (B, 2023)."""
        x = ((images - 128) / 128).contiguous(memory_format=torch.channels_last)
        for name in STEM:
            x = getattr(self, name)(x).relu_()
            if name in POOL_AFTER:
                x = F.max_pool2d(x, 3, 2)
        for name in BLOCKS:
            x = getattr(self, name)(x)
            if name == SPATIAL_BLOCK:
                spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return x.mean((2, 3)), spatial


def load_inception(path: Path, sha256: str | None = None, device: torch.device | str = "cpu") -> Inception:
    """The network with the weights of a file: the published file, or one with the SHA-256 that is given.

    Raises InputError if the file is missing, has another hash, or does not hold the 566 tensors."""
    path = Path(path)
    if not path.exists():
        problem = f"no Inception weights at {path}; copy {FILE} there"
        raise MissingArtifact("weights", path, f"{problem}, or download it", name=NAME)
    found, expected = hash_file(path), sha256 or SHA256_PREFIX
    if not found.startswith(expected):
        raise MissingArtifact(
            "weights",
            path,
            f"the Inception weights in {path} have SHA-256 {found}, expected {expected}"
            f"{'' if sha256 else '...'}: truncated, or another network, whose numbers are not comparable",
            remove=path.name == FILE,  # a file of another name is the user's own
            name=NAME,
        )
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        model = Inception()
        model.load_state_dict(_folded(state))
    except Exception as error:  # for damaged bytes torch raises errors of any type
        raise InputError(
            f"{path} does not hold the 566 tensors of {NAME} ({reason(error, path)}); name the published file, or "
            "another of its layout"
        ) from error
    model.sha256 = found
    return model.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)


def _folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors in this network's layout: convolutions with biases, the heads of a block joined."""
    weights, used = {}, {"fc.weight", "fc.bias"}

    def fold(name: str) -> tuple[Tensor, Tensor]:
        bn = {key: state[f"{name}.bn.{key}"].double() for key in ("weight", "bias", "running_mean", "running_var")}
        scale = bn["weight"] / (bn["running_var"] + BATCH_NORM_EPSILON).sqrt()
        weight = state[f"{name}.conv.weight"].double() * scale[:, None, None, None]
        used.update(key for key in state if key.startswith(f"{name}."))
        return weight.float(), (bn["bias"] - bn["running_mean"] * scale).float()

    for name in STEM:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = fold(name)
    for block, plan in BLOCKS.items():
        heads = [fold(f"{block}.{name}") for name in plan.heads]
        for part, tensors in zip(("weight", "bias"), zip(*heads, strict=True), strict=True):
            weights[f"{block}.heads.{part}"] = torch.cat(tensors)
        for name in plan.tails:
            weights[f"{block}.{name}.weight"], weights[f"{block}.{name}.bias"] = fold(f"{block}.{name}")
    left = sorted(state.keys() - used)
    if left:
        raise KeyError(f"{len(left)} tensors that the network does not have, such as {left[0]}")
    return weights | {"fc.weight": state["fc.weight"], "fc.bias": state["fc.bias"]}


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Compute in true float32 on GPUs and CPUs inside this context: no TF32, no bf16, no autocast."""
    backends = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,
        torch.backends.mkldnn.matmul,
        torch.backends.mkldnn.conv,
    )
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False), torch.inference_mode():
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


ARITHMETIC = {"dtype": "float32", "tf32": False, "bf16": False}  # within `exact_arithmetic`
