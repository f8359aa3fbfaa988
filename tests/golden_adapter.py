"""Our implementation behind the functions that `shared/golden/check_golden.py` calls.

    python ../shared/golden/check_golden.py --adapter tests/golden_adapter.py [--slow]

`tests/test_golden_checks.py` runs it; the functions also serve the tests that read the copies in tests/data."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llamagen.build import ARModel, DataShape, build_model
from llamagen.conditioning import visible_keys
from llamagen.config import ModelConfig
from llamagen.filters import SamplingConfig, probabilities
from llamagen.filters import filter_logits as filter_logits
from llamagen.generate import generate as our_generate
from llamagen.layers import apply_rope as apply_rope
from llamagen.layers import rope_table
from llamagen.official import official_name, official_state, rename
from llamagen.optim import Average, OptimConfig, build_optimizer
from masc.heads import HeadConfig
from vq.checkpoint import load_state

FLAT = HeadConfig(name="flat", kind="flat")
SIZES = {  # layers, heads, width: llamagen/configs by the released names
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
    shape = DataShape(config["vocab_size"], config.get("num_classes", 1000), round(config["block_size"] ** 0.5))
    return build_model(model, FLAT, shape, None, seed=0)


def load_gpt_state(module: ARModel, state: dict[str, Tensor]) -> None:
    load_state(module, rename(state), Path("the golden state dict"))


def forward(module, idx, cond, train, targets=None, mask=None, valid=None):
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
    from llamagen.conditioning import drop_condition

    embedding = module.backbone.cls_embedding
    if force_drop_ids is not None:
        cond = drop_condition(embedding, cond, force_drop_ids == 1)
    return embedding(cond)


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
    groups = build_optimizer(module, _optim(hyper), fused=True).param_groups
    return [(group["weight_decay"], {names[id(parameter)] for parameter in group["params"]}) for group in groups]


def train_steps(module, tokens, labels, hyper):
    config = _optim(hyper)
    optimizer = build_optimizer(module, config, fused=True)
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
    averaged = {official_name(name): value for name, value in average.state.items()}
    return {"losses": losses, "grad_norms": norms, "params": official_state(module), "ema": averaged}


def build_vq(config: dict):
    from vq.llamagen import LlamaGenVQ

    return LlamaGenVQ(
        num_tokens=config["codebook_size"],
        code_dim=config["codebook_embed_dim"],
        channels=config.get("ch", 128),
        channel_multipliers=config["encoder_ch_mult"],
        z_channels=config.get("z_channels", 256),
    ).eval()


def center_crop(pixels, size):
    from vq.crops import center_crop

    return np.asarray(center_crop(pixels, size))


def cluster(codebook: np.ndarray, k: int) -> np.ndarray:
    from masc.linkage import average_linkage
    from masc.tree import Tree

    return Tree(average_linkage(codebook)).cut(k).cluster_of


def build_named(name: str, kwargs: dict):
    if name.startswith("VQ"):
        multipliers = {"VQ-16": [1, 1, 2, 2, 4], "VQ-8": [1, 2, 2, 4]}[name]
        return build_vq({**kwargs, "encoder_ch_mult": multipliers})
    layers, heads, width = SIZES[name]
    defaults = {"n_kv_head": None, "multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5, "rope_base": 10000}
    return build_gpt(
        {**defaults, "class_dropout_prob": 0.1, "dim": width, "n_layer": layers, "n_head": heads, **kwargs}
    )


def state_keys(name: str, kwargs: dict) -> dict[str, list[int]]:
    with torch.device("meta"):
        module = build_named(name, kwargs)
    state = module.state_dict() if name.startswith("VQ") else official_state_shapes(module)
    return {key: list(value.shape) for key, value in state.items()}


def official_state_shapes(module: ARModel) -> dict[str, Tensor]:
    return {official_name(name): value for name, value in module.state_dict().items()}
