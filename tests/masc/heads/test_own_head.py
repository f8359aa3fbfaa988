"""docs/heads.md says what is true: its counts are those of the heads, and its example is a head like any other.

The code of the example is taken from the page itself."""

import importlib.util
import re
import shutil
import sys
from dataclasses import fields

import numpy as np
import pytest
import stage
import torch
from head_cases import HEADS_TO_TEST, TREES, D, Draws, all_probabilities, draw, head_of, hidden, new_head
from parameters import count
from scipy import stats
from tiny_artifacts import make_artifacts

import masc.heads.config
import masc.heads.registry
from llamagen.runs import Run
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.train import train
from llamagen.training.config import TrainConfig
from masc.heads.base import Follow
from masc.heads.config import CONFIGS
from masc.heads.registry import HEADS, build_head
from masc.runtime.run import read_metrics
from masc.tree import Tree

BLOCK = re.compile(r"^```(?:python|yaml)\n# ([^\n]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "heads.md").read_text()


@pytest.fixture(scope="module")
def configs():
    """The configs of configs/head by name."""
    names = sorted(file.stem for file in (stage.CONFIGS / "head").glob("*.yaml"))
    return {name: stage.named_config("head", name) for name in names}


def rows_of(page, first):
    """The cells of the table whose header begins with a cell, by the first cell of each row."""
    lines = page[page.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (lines[0], *lines[2:])]
    return {row[0].strip("`"): dict(zip(cells[0], row, strict=True)) for row in cells[1:]}


def test_the_table_has_every_head_with_its_decisions_and_parameters(page, configs):
    size, width = 16384, 768
    merges = np.zeros((size - 1, 4))  # the two oldest clusters merge: a balanced tree
    merges[:, :2], merges[:, 2] = np.arange(2 * size - 2).reshape(-1, 2), np.arange(size - 1)
    sizes = np.ones(2 * size - 1)
    for row in range(size - 1):
        sizes[size + row] = merges[row, 3] = sizes[2 * row] + sizes[2 * row + 1]
    tree, rows = Tree(merges), rows_of(page, "`HEAD` | p(x)")
    assert set(rows) == set(configs)
    for name, row in rows.items():
        with torch.device("meta"):
            head = build_head(configs[name], width, size, tree, np.ones(size, np.int64))
        formula = row["parameters"].replace(",", "").replace("D²", "* D * D")
        formula = re.sub(r"(?<=\d) ([DV])", r" * \1", formula)
        largest = int(tree.cut(128).sizes.max())
        assert eval(formula, {"D": width, "V": largest}) == sum(part.numel() for part in head.parameters()), name
        assert int(row["decisions"].partition(",")[0]) == head.num_decisions, name


def test_the_settings_of_every_head_are_listed(page, configs):
    listed = {
        name: row
        for names, row in rows_of(page, "`HEAD` | settings and defaults").items()
        for name in names.split("`, `")
    }
    assert set(listed) == set(rows_of(page, "`HEAD` | p(x)"))
    for name, row in listed.items():
        found = set(re.findall(r"`(\w+)`", row["settings and defaults"]))
        settings = {field.name for field in fields(configs[name])} - {"name", "kind"}
        assert found | {"context"} == settings | {"context"}, name  # it has one value in some heads


def test_the_share_of_the_head_is_what_the_parameters_say(page):
    rows = rows_of(page, "N = 16,384")
    for letter, width in (("B", 768), ("L", 1024), ("XL", 1280)):
        products = 16384 * width
        body = count(f"llamagen-{letter.lower()}", 16384, 1000) - 2 * products
        share = products / (body + products)
        found = {name: row[letter] for name, row in rows.items()}
        assert found == {
            "body": f"{body:,}",
            "N D": f"{products:,}",
            "share of the head": f"{share:.1%}",
            "saved by K = N / 2": f"{share / 2:.1%}",
        }


@pytest.fixture
def example(page, tmp_path, monkeypatch):
    """The page's lines where it says they stand."""
    code, names = dict(BLOCK.findall(page)), dict(vars(masc.heads.config))
    exec(code["masc/heads/config.py, above CONFIGS"], names)
    monkeypatch.setattr(masc.heads.config, "DigitsConfig", names["DigitsConfig"], raising=False)
    for kind, made in eval(f"{{{code['masc/heads/config.py, in CONFIGS']}}}", names).items():
        monkeypatch.setitem(CONFIGS, kind, made)
        monkeypatch.setitem(stage.SCHEMAS["head"], f"{kind}_schema", f"masc.heads.config:{made.__name__}")
        monkeypatch.setitem(HEADS_TO_TEST, kind, (kind, {}))
    (tmp_path / "digits.py").write_text(code["masc/heads/digits.py"])
    spec = importlib.util.spec_from_file_location("masc.heads.digits", tmp_path / "digits.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "masc.heads.digits", module)
    spec.loader.exec_module(module)
    names = dict(vars(masc.heads.registry))
    exec(code["masc/heads/registry.py"], names)
    for kind, made in eval(f"{{{code['masc/heads/registry.py, in HEADS']}}}", names).items():
        monkeypatch.setitem(HEADS, kind, made)
    shutil.copytree(stage.CONFIGS, tmp_path / "configs")
    (tmp_path / "configs" / "head" / "digits.yaml").write_text(code["configs/head/digits.yaml"])
    monkeypatch.setattr(stage, "CONFIGS", tmp_path / "configs")
    return "digits"


def test_the_example_obeys_the_laws_on_every_tree(example):
    for tree in TREES:
        head, new = head_of(example, tree), new_head(example, tree)
        total = all_probabilities(head, hidden(4)).sum(-1)
        torch.testing.assert_close(total, torch.ones(4), atol=1e-5, rtol=0)
        tokens = torch.arange(head.num_tokens)
        follow = Follow(head.path(tokens))
        assert torch.equal(draw(head, hidden(len(tokens)), follow), tokens)
        first = new.log_probs(hidden(len(tokens)), tokens)[:, 0]
        torch.testing.assert_close(first, torch.full_like(first, -np.log(len(new.high.weight))))


@torch.no_grad()
def test_samples_of_the_example_follow_its_log_probs(example):
    # Chi-square over N tokens of 20,000 draws at one hidden state; false-alarm rate 1e-4, seed fixed.
    head, h, draws = head_of(example, "a prime number of tokens"), hidden(1) * 0.5, 20_000
    tokens = draw(head, h.expand(draws, -1), Draws(np.random.default_rng(7).random((draws, 2))))
    expected = all_probabilities(head, h)[0].double().numpy() * draws
    observed = np.bincount(tokens.numpy(), minlength=head.num_tokens)
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
    statistic = (np.square(pooled[0] - pooled[1]) / np.maximum(pooled[1], 1e-9)).sum()
    assert stats.chi2.sf(statistic, len(pooled[0]) - 1) > 1e-4


def test_training_lowers_the_loss_of_the_example(example):
    head = new_head(example, "average linkage")
    states = torch.randn(8, D, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    tokens = torch.arange(8).repeat(4) * 5
    optimizer, losses = torch.optim.Adam(head.parameters(), lr=0.05), []
    for _ in range(40):
        loss = -head.log_probs(states, tokens).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_run_of_the_example_trains_and_samples(example, tmp_path):
    words = ["model=llamagen-tiny", "data=twemoji", "head=digits", "model.dim=32", "model.num_layers=1"]
    words += ["model.num_heads=4", "steps=6", "batch_size=8", "evaluate_every=6", "precision=fp32"]
    words += [
        "optim.learning_rate=0.01",
        "tracking.mode=disabled",
        f"artifacts={make_artifacts(tmp_path / 'artifacts')}",
    ]
    config = stage.load_config("train", TrainConfig, [*words, f"run_dir={tmp_path / 'run'}"])
    rows = read_metrics(train(config) / "metrics.jsonl")
    assert rows[-1]["val/nats_per_token"] < rows[0]["val/nats_per_token"]
    model = Run(config.directory).load_model()
    uniforms = image_uniforms(0, np.arange(4), model.backbone.num_positions, 2)
    tokens = generate(model, torch.arange(4), uniforms, SamplingConfig(guidance=2.0))
    assert tokens.max() < model.head.num_tokens and len(torch.unique(tokens)) > 1
