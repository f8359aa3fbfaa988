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
    del rows[0]["protocol"]["labels"]  # null means absent
    assert Results.load(tmp_path / "a.json").rows == rows


BAD = (
    {"value": "5"},
    {"value": None},
    {"value": True},
    {"metric": 3},
    {"interval": {"low": "a", "high": 1}},
    {"interval": [1, 2]},
    {"value": float("nan")},
    {"value": float("inf")},
    {"interval": {"low": 6.0, "high": 5.0}},
    {"interval": {"low": float("nan"), "high": 5.0}},
    {"interval": {"low": 5.0, "high": float("inf")}},
    {"protocol": []},
    *(
        {"protocol": {name: value}}
        for name, value in (
            ("num_images", "50000"),
            ("num_images", True),
            ("num_images", 5.5),
            ("num_images", 0),
            ("num_images", 10**400),
            ("levels", [1, "a"]),
            ("levels", [10**30]),
            ("guidance", "2"),
            ("arithmetic", 3),
            ("model", ["a"]),
            ("as", 3),
        )
    ),
)


def write_unchecked(file, rows, evidence=None):
    content = {"format": "masc-results", "version": 1, "rows": rows, "evidence": {} if evidence is None else evidence}
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": float("nan")}, r"expected a finite sFID, found nan; .*a\.json was not written"),
        ({"value": float("inf")}, "expected a finite sFID, found inf"),
        ({"interval": {"low": float("nan"), "high": 5.0}}, "expected a finite sFID, found 5.0, nan, 5.0"),
        ({"interval": {"low": 6.0, "high": 5.0}}, r"a\.json"),
        ({"protocol": {"num_images": 0}}, r"a\.json"),
    ],
    ids=str,
)
def test_what_a_reader_would_refuse_is_not_written(tmp_path, change, words):
    file = tmp_path / "a.json"
    with pytest.raises(InputError, match=words):
        Results([row("FID", 5.0, {}), row("sFID", 5.0, {}) | change]).save(file)
    with pytest.raises(InputError, match=r"a\.json"):
        Results([row("FID", 5.0, {})], {"sharpness": 3}).save(file)
    assert not file.exists()


@pytest.mark.parametrize("change", BAD, ids=str)
def test_a_value_of_another_type_is_one_error_that_names_the_file(tmp_path, change):
    file = tmp_path / "a.json"
    write_unchecked(file, [row("FID", 5.0, {}) | change])
    with pytest.raises(InputError, match=r"a\.json"):
        Results.load(file)


@pytest.mark.parametrize(
    "evidence",
    [
        [],
        {"labels": None},
        {"labels": {"classes": 0, "present": 0, "fewest": 0, "most": 0, "sorted": True}},
        {"labels": {"classes": 10}},
        {"inception_score": {"file_order": 1, "shuffled": 0}},
        {"inception_score": {"file_order": "1", "shuffled": 2}},
        {"file_types": {"png": "many"}},
        {"image_sizes": [256]},
        {"sharpness": 3},
        {"blockiness": "high"},
        {"tree_tokenizer_sha256": 5},
    ],
    ids=str,
)
def test_evidence_of_another_form_is_one_error_that_names_the_file(tmp_path, evidence):
    file = tmp_path / "a.json"
    write_unchecked(file, [row("FID", 5.0, {})], evidence)
    with pytest.raises(InputError, match=r"a\.json"):
        Results.load(file)


def test_two_rows_of_one_number_are_refused_and_of_two_protocols_are_not(tmp_path):
    file = tmp_path / "a.json"
    Results([row("IS", 5.0, {"form": "adm"}), row("IS", 6.0, {"form": "torch-fidelity"})]).save(file)
    assert len(Results.load(file).rows) == 2
    write_unchecked(file, [row("IS", 5.0, {"form": "adm"}), row("IS", 6.0, {"form": "adm"})])
    with pytest.raises(InputError, match=r"each of another number"):
        Results.load(file)
