"""Protocols of results: every key has a role, and an unknown key is an error."""

import json
from dataclasses import dataclass, fields

import pytest

from llamagen.sampling.filters import SamplingConfig
from masc.runtime.errors import InputError
from metrics.fidelity import LPIPS, PSNR, SSIM, Judges
from metrics.perceptual import Lpips
from metrics.reference import ReferenceStatistics
from metrics.results import Protocol, Results, Role, key, row, with_roles


def test_every_key_has_one_role():
    parts = [Protocol.keys(role) for role in Role]
    assert sorted(name for part in parts for name in part) == sorted(Protocol.roles())
    assert {"as", "K", "guidance"} <= set(Protocol.roles())


def test_a_field_without_a_role_is_refused():
    @dataclass
    class Roleless:
        known: str = key(Role.DETAIL)
        new: str = ""

    with pytest.raises(TypeError, match="Roleless: new needs a role"):
        with_roles(Roleless)


def test_every_setting_of_sampling_is_a_key_and_its_neutral_value_is_the_default():
    defaults = {each.name: each.default for each in fields(SamplingConfig)}
    assert set(defaults) <= set(Protocol.keys(Role.IDENTITY))
    assert Protocol.neutral() == {name: defaults[name] for name in Protocol.neutral()}


def test_what_the_metrics_write_has_known_keys():
    reference = ReferenceStatistics("a", "f" * 64, "val", 10, None, None, None)
    judges = Judges((), Lpips())
    for protocol in (reference.protocol, *(judges.protocol(metric) for metric in (PSNR, SSIM, LPIPS))):
        Protocol.check(protocol, "it")


def test_an_unknown_key_is_refused_in_a_row_and_named_with_its_file(tmp_path):
    with pytest.raises(ValueError, match=r"the row of FID has the unknown key 'ema_decay' .*; known keys: K,"):
        row("FID", 5.0, {"evaluator": "adm", "ema_decay": 0.99})
    file = tmp_path / "default-adm.json"
    Results([row("FID", 5.0, {"evaluator": "adm"})]).save(file)
    file.write_text(file.read_text().replace('"evaluator"', '"ema_decay"'))
    with pytest.raises(InputError, match=r"default-adm.json has the unknown key 'ema_decay' .*; known keys: K,"):
        Results.load(file)


def test_a_file_keeps_its_layout(tmp_path):
    rows = [row("FID", 5.0, {"evaluator": "adm", "as": "x", "labels": None}, {"low": 4.9, "high": 5.1})]
    Results(rows, {"blockiness": 1.0}).save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content == {"format": "masc-results", "version": 1, "rows": rows, "evidence": {"blockiness": 1.0}}
    assert Results.load(tmp_path / "a.json").rows == rows
