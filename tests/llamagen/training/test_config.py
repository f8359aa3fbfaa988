"""Configs of runs on disk: those of earlier versions load, and their runs go on."""

import pytest
import yaml
from checkpoint_tools import age
from messages import explain
from run_rows import losses

from llamagen.backbones.config import ModelConfig
from llamagen.train import train
from llamagen.training.checkpoint import list_checkpoints
from llamagen.training.config import load_config
from llamagen.training.inputs import load_inputs
from masc.heads.config import FlatConfig, MascConfig
from masc.runtime.errors import InputError
from masc.runtime.run import LLAMAGEN
from masc.runtime.targets import NAMED


def as_before(run_dir):
    """Rewrite a run's config.yaml as versions wrote it that had one class of heads and one backbone."""
    file = run_dir / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    del stored["model"]["target"]
    for key in ("diagnostics", "compute", "keep_last", "keep_every", "from_checkpoint"):
        del stored[key]
    for key in ("kind", "momentum", "skip_bad_steps", "norm_ceiling"):
        del stored["optim"][key]
    stored["head"] = {"num_clusters": None, "context": "token"} | stored["head"]
    stored["head"].pop("members", None)
    file.write_text(yaml.safe_dump(stored, sort_keys=False))
    return stored


def test_the_target_of_earlier_configs_is_llamagens():
    assert ModelConfig.target == LLAMAGEN


@pytest.mark.parametrize(("head", "schema"), [("flat", FlatConfig), ("masc", MascConfig)])
def test_a_run_of_an_earlier_version_loads_and_goes_on(small_run, tmp_path, dies, head, schema):
    config, whole = (small_run(f"head={head}", "ema_decay=0.9", f"run_dir={tmp_path / name}") for name in "ab")
    dies(config, 7)
    stored = as_before(config.directory)
    assert "target" not in stored["model"] and set(stored["head"]) == {"name", "kind", "num_clusters", "context"}
    loaded = load_config(config.directory / "config.yaml")
    assert loaded == config and (type(loaded.head), type(loaded.model)) == (schema, ModelConfig)
    config.open_directory(load_inputs(config).parents)  # no key differs
    assert age(config.directory).name == "last"
    assert losses(train(config)) == losses(train(whole))
    assert [path.name for path in list_checkpoints(config.directory)] == ["step-00000012", "step-00000008"]


def test_a_backbone_with_llamagens_keys_and_a_class_of_its_own_loads(small_run, monkeypatch):
    config = small_run("head=flat", "model.target=my.module:Transformer", "model.name=mine")
    config.open_directory({})
    with pytest.raises(InputError, match="names the model 'mine', and configs/model has no config of that name"):
        load_config(config.directory / "config.yaml")
    monkeypatch.setitem(NAMED, "model", {"mine": config.model}.get)
    assert load_config(config.directory / "config.yaml") == config


def test_a_changed_value_of_an_earlier_version_is_still_refused(small_run):
    config = small_run("head=masc", "steps=4")
    train(config)
    as_before(config.directory)
    parents = load_inputs(config).parents
    with pytest.raises(InputError, match=r"head\.num_clusters: None there, 12 now"):
        small_run("head=masc", "steps=4", "head.num_clusters=12").open_directory(parents)
    with pytest.raises(InputError, match=r"head\.kind: 'masc' there, 'flat' now"):
        small_run("head=flat", "steps=4").open_directory(parents)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("head", "kind", "nonesuch", "names the head 'nonesuch'; this version has flat, masc"),
        ("head", "colour", 3, "colour"),
        ("optim", "learning_rate", "fast", "learning_rate"),
        ("model", "dim", 33, "head width divisible by 4"),
        (
            "model",
            "target",
            "os:system",
            "names the class 'os:system', but the config llamagen-tiny .* names 'llamagen",
        ),
        ("model", "name", {"a": 1}, "name"),
        ("data", "path", ["a"], "path"),
        ("data", "name", "../../elsewhere", r"data\.name must be the name of a folder"),
        ("tree", "name", "/elsewhere", r"tree\.name must be the name of a folder"),
        ("head", "name", "..", r"head\.name must be the name of a folder"),
        ("model", "name", "a/b", r"model\.name must be the name of a folder"),
        ("model", "num_heads", 0, r"model\.num_heads must be positive"),
        ("model", "multiple_of", -1, r"model\.multiple_of must be positive"),
        ("model", "norm_eps", float("nan"), r"model\.norm_eps must be positive"),
        ("model", "ffn_dim_multiplier", 1e308, r"model\.ffn_dim_multiplier must lie in"),
        ("optim", "learning_rate", 10**400, "learning_rate|too large"),
        ("head", "kind", ["flat"], r"names the head \['flat'\]"),
        ("loss", "kind", ["ce"], r"names the loss \['ce'\]"),
        ("loss", "kind", "nonesuch", "names the loss 'nonesuch'; this version has ce, label-smoothing"),
    ],
)
def test_a_config_that_does_not_fit_is_one_error_that_names_its_file(small_run, section, key, value, words):
    config = small_run("head=masc")
    config.open_directory({})
    file = config.directory / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    stored[section][key] = value
    file.write_text(yaml.safe_dump(stored))
    with pytest.raises(InputError, match=words) as error:
        load_config(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "\\${oc.env:SECRET}", "a${seed}b", "${"])
def test_an_interpolation_in_a_stored_config_is_text(small_run, monkeypatch, text):
    monkeypatch.setenv("SECRET", "hunter2")
    config = small_run("head=masc")
    config.open_directory({})
    file = config.directory / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    stored["data"]["path"] = text
    file.write_text(yaml.safe_dump(stored))
    assert load_config(file).data.path == text


@pytest.mark.parametrize(
    "content",
    [b"", b"model: [", b"- a", b"a: !!python/object/apply:os.system ['touch x']", b"\xff\xfe", b"seed: 0", b"model: 3"],
)
def test_a_damaged_config_says_so_and_advises_to_remove_nothing(tmp_path, content):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml") as error:
        load_config(file)
    assert "rm " not in explain(error.value)
