"""Our implementation behind the functions that `shared/golden/check_golden.py` calls.

    python ../shared/golden/check_golden.py --adapter tests/golden_adapter.py [--slow]

`tests/test_golden_checks.py` runs it; the functions also serve the tests that read the copies in tests/data."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from llamagen.backbones.base import DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.backbones.embeddings import visible_keys
from llamagen.backbones.layers import apply_rope, rope_table
from llamagen.backbones.official import official_name, official_state, rename
from llamagen.model import ARModel, build_model
from llamagen.sampling.filters import SamplingConfig, filter_logits, probabilities
from llamagen.sampling.generate import generate as our_generate
from llamagen.sampling.images import finish
from llamagen.training.average import Average
from llamagen.training.optim import OptimConfig, build_optimizers
from masc.heads.config import FlatConfig
from masc.linkage import average_linkage
from masc.runtime.codes import load_codes
from masc.tree import Tree
from vq.checkpoint import load_state
from vq.codebook import make_codebook
from vq.codes.extract import extract_codes as our_extract
from vq.codes.shards import ExtractConfig
from vq.crops import center_crop, random_crop, ten_crop
from vq.data import DataConfig
from vq.interface import TokenizerConfig
from vq.llamagen import LlamaGenVQ
from vq.readers import load_images

__all__ = ["apply_rope", "center_crop", "filter_logits", "random_crop", "ten_crop"]  # ours as they are
FLAT = FlatConfig(name="flat")
VQ = TokenizerConfig(name="golden", target="vq.llamagen:LlamaGenVQ")
SIZES = {  # layers, heads, width by the released names; configs/model has them under ours
    "GPT-B": (12, 12, 768),
    "GPT-L": (24, 16, 1024),
    "GPT-XL": (36, 20, 1280),
    "GPT-XXL": (48, 24, 1536),
    "GPT-XXXL": (48, 40, 2560),
    "GPT-1B": (22, 32, 2048),
    "GPT-3B": (24, 32, 3200),
    "GPT-7B": (32, 32, 4096),
}


def build_gpt(config: dict) -> ARModel:
    """Our model for a config under the official names, dropout off."""
    is_text = config["model_type"] == "t2i"
    model = ModelConfig(
        name="golden",
        dim=config["dim"],
        num_layers=config["n_layer"],
        num_heads=config["n_head"],
        num_kv_heads=config["n_kv_head"],
        multiple_of=config["multiple_of"],
        ffn_dim_multiplier=config["ffn_dim_multiplier"],
        norm_eps=config["norm_eps"],
        rope_base=config["rope_base"],
        class_dropout=config["class_dropout_prob"],
        token_dropout=0.0,
        residual_dropout=0.0,
        ffn_dropout=0.0,
        condition="text" if is_text else "class",
        caption_tokens=config["cls_token_num"],
        caption_dim=config.get("caption_dim", 2048),
    )
    shape = DataShape(config["vocab_size"], config.get("num_classes", 1000), config["block_size"])
    return build_model(model, FLAT, shape, None, seed=0)


@dataclass
class Released:
    """One of the real sizes, whose state dict shows the released names."""

    model: ARModel

    def state_dict(self) -> dict[str, Tensor]:
        return {official_name(name): value for name, value in self.model.state_dict().items()}


def load_gpt_state(module: ARModel | Released, state: dict[str, Tensor]) -> None:
    model = module.model if isinstance(module, Released) else module
    load_state(model, rename(state), Path("the golden state dict"))


def forward(module, idx, cond, train, targets=None, mask=None, valid=None):
    module = module.model if isinstance(module, Released) else module
    module.train(train)
    tokens = torch.cat([idx, idx[:, :1]], dim=1) if targets is None else targets
    hidden = module.backbone(tokens, cond, mask)
    logits = module.head.output(hidden).float()
    if targets is None:
        return logits, None
    nats = -module.head.log_probs(hidden, targets).sum(-1)
    weight = torch.ones(len(nats)) if valid is None else valid.float()
    weights = weight[:, None].expand_as(nats)
    return logits, (nats * weights).sum() / weights.sum().clamp(min=1)


def decode_steps(module, idx, cond, emb_mask):
    backbone = module.eval().backbone
    mask = None if emb_mask is None else visible_keys(emb_mask.bool(), backbone.num_positions - 1)
    caches = backbone.empty_caches(len(idx))
    hidden = [backbone.start(cond, caches, mask)]
    for position in range(1, idx.shape[1] + 1):
        hidden.append(backbone.step(idx[:, position - 1], position, caches, mask))
    return module.head.output(torch.stack(hidden, dim=1))


def generate(module, cond, n, cfg_scale, cfg_interval, emb_mask):
    config = SamplingConfig(guidance=cfg_scale, guidance_interval=cfg_interval, top_k=1)
    uniforms = torch.zeros(len(cond), n, 1, dtype=torch.float64)
    return our_generate(module.eval(), cond, uniforms, config, None if emb_mask is None else emb_mask.bool())


def embed_cond(module, cond, force_drop_ids=None):
    if force_drop_ids is not None:
        cond = module.backbone.drop_condition(cond, force_drop_ids == 1)
    return module.backbone.cls_embedding(cond)


def rope_2d(grid, head_dim, base, cls_token_num):
    return rope_table(grid, head_dim, base, cls_token_num, torch.device("cpu"))


def sample_probs(logits, temperature, top_k, top_p):
    return probabilities(logits, temperature, top_k, top_p)


def _names(module: ARModel) -> dict[int, str]:
    return {id(parameter): official_name(name) for name, parameter in module.named_parameters()}


def _optim(hyper: dict) -> OptimConfig:
    return OptimConfig(
        learning_rate=hyper["lr"],
        final_share=1.0,
        weight_decay=hyper["weight_decay"],
        betas=(hyper["beta1"], hyper["beta2"]),
        max_grad_norm=hyper["max_grad_norm"],
    )


def optimizer_groups(module, hyper):
    names = _names(module)
    (optimizer,) = build_optimizers(module, _optim(hyper), fused=True)
    return [
        (group["weight_decay"], {names[id(parameter)] for parameter in group["params"]})
        for group in optimizer.param_groups
    ]


def train_steps(module, tokens, labels, hyper):
    config = _optim(hyper)
    (optimizer,) = build_optimizers(module, config, fused=True)
    average = Average(module, hyper["ema_decay"])
    losses, norms = [], []
    for step in range(len(tokens)):
        loss = -module.train()(tokens[step], labels[step]).sum(-1).mean()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), config.max_grad_norm).item())
        optimizer.step()
        optimizer.zero_grad()
        average.update(module)
        losses.append(loss.item())
    averaged = {official_name(name): value for name, value in average.parameters.items()}
    return {"losses": losses, "grad_norms": norms, "params": official_state(module), "ema": averaged}


def build_vq(config: dict):
    return LlamaGenVQ(
        num_tokens=config["codebook_size"],
        code_dim=config["codebook_embed_dim"],
        channels=config.get("ch", 128),
        channel_multipliers=config["encoder_ch_mult"],
        z_channels=config.get("z_channels", 256),
        l2_norm=config.get("codebook_l2_norm", True),
        track_usage=config.get("codebook_show_usage", True),
    ).eval()


def load_vq_state(module, state):
    load_state(module, state, Path("the golden state dict"))


def vq_encode(module, x):
    latents = module.latents(x)
    tokens = module.encode(x)
    side = latents.shape[-2:]
    quant = module.quantize.codebook[tokens].unflatten(1, side).permute(0, 3, 1, 2)
    return quant, tokens.flatten()


def vq_decode_code(module, indices, shape):
    return module.decode(indices.view(shape[0], -1))


def vq_losses(module, x, entropy_ratio):
    return module.quantize.losses(module.latents(x), entropy_ratio)


def to_uint8(x, image_size_eval):
    return finish(x, image_size_eval)


def extract_codes(image_dir, out_dir, vq, image_size, ten_crop, crop_range):
    """Our own extraction of a folder of class folders, its result written in the released layout."""
    work = Path(out_dir) / ".ours"
    (work / "images").mkdir(parents=True)
    (work / "images" / "train").symlink_to(image_dir)
    save_file(vq.state_dict(), work / "vq.safetensors")
    codebook = make_codebook(VQ, work / "vq.safetensors", work / "codebook.npz", vq)
    data = DataConfig(
        name="golden",
        source="folder",
        path=str(work / "images"),
        resolution=image_size,
        tokenizer="golden",
        crops="ten-crop" if ten_crop else "center-flip",
        crop_ranges=[crop_range or 1.0],
    )
    images = load_images(data.source, "train", image_size, data.path)
    settings = ExtractConfig(num_workers=0)
    our_extract(vq, images, data.views("train"), codebook, work / "codes", settings)
    codes = load_codes(work / "codes", codebook.meta.sha256)
    for kind, values in (("codes", codes.tokens[:, None]), ("labels", codes.labels[:, None])):
        folder = Path(out_dir) / f"imagenet{image_size}_{kind}"
        folder.mkdir()
        for index, value in enumerate(values):
            np.save(folder / f"{index}.npy", value.astype(np.int64))
    shutil.rmtree(work)


def cluster(codebook: np.ndarray, k: int) -> np.ndarray:
    return Tree(average_linkage(codebook).merges).cut(k).cluster_of


def build_named(name: str, kwargs: dict):
    if name.startswith("VQ"):
        multipliers = {"VQ-16": [1, 1, 2, 2, 4], "VQ-8": [1, 2, 2, 4]}[name]
        return build_vq({**kwargs, "encoder_ch_mult": multipliers})
    layers, heads, width = SIZES[name]
    defaults = {"n_kv_head": None, "multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5, "rope_base": 10000}
    sizes = {"class_dropout_prob": 0.1, "dim": width, "n_layer": layers, "n_head": heads}
    return Released(build_gpt({**defaults, **sizes, **kwargs}))


def state_keys(name: str, kwargs: dict) -> dict[str, list[int]]:
    with torch.device("meta"):
        module = build_named(name, kwargs)
    return {key: list(value.shape) for key, value in module.state_dict().items()}
