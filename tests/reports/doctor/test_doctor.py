"""Each diagnosis on a fabricated case that differs from a sound one only by its fault."""

import json

import pytest
import yaml
from doctor_cases import (
    CASES,
    FIFTY_EACH,
    MASC_VALUES,
    NAMELESS,
    NOTES,
    PAPER,
    RUN,
    VALUES,
    codes,
    make_results,
)
from script_runner import run_script
from stage import CONFIGS

from masc.runtime.errors import InputError
from metrics.results import Results, row
from reports.doctor.doctor import diagnose, read_results, render_findings
from reports.doctor.rules import GALLERIES
from reports.published import published

WHOLE = {"format": "masc-results", "version": 1, "rows": [], "evidence": {}}


def test_a_sound_result_has_nothing_wrong_and_agrees_with_its_row():
    (finding,) = diagnose(make_results())
    assert (finding.code, finding.verdict) == ("agrees", "fine")
    for words in ("LlamaGen paper, Table 8", "FID 5.46 (published 5.464)", "FID 0.02"):
        assert words in finding.text


def test_a_sound_run_of_masc_agrees_with_masc():
    (finding,) = diagnose(make_results(RUN | PAPER, MASC_VALUES, FIFTY_EACH))
    assert finding.code == "agrees" and "MASC, Table 1" in finding.text


@pytest.mark.parametrize("name", CASES)
def test_a_fault_gives_its_own_finding_and_no_other(name):
    protocol, values, evidence, code, verdict, words = CASES[name]
    findings = diagnose(make_results(protocol, values, evidence))
    counted = [finding for finding in findings if finding.verdict != "note"]
    assert [(finding.code, finding.verdict) for finding in counted] == [(code, verdict)]
    for word in words:
        assert word in counted[0].text
    assert counted[0].advice
    allowed = {"across-evaluators"} if protocol.get("head") == "masc" and "evaluator" not in protocol else set()
    assert {finding.code for finding in findings if finding.verdict == "note"} <= allowed


@pytest.mark.parametrize("name", NOTES)
def test_a_remark_does_not_hide_that_nothing_is_wrong(name):
    protocol, values, evidence, code = NOTES[name]
    findings = diagnose(make_results(protocol, values, evidence))
    assert [finding.code for finding in findings if finding.verdict == "note"] == [code]
    assert {finding.verdict for finding in findings} <= {"note", "fine"}


def test_reports_of_a_wrong_reference_are_recognised():
    reports = [row for row in published() if row.kind == "report" and "reference made of" in row.cause]
    assert len(reports) == 3
    for report in reports:
        known = {"model": report.model, "release": report.release, "drawn_at": report.drawn_at}
        guidance = report.guidance or next(r.guidance for r in published() if r.preset and r.release == report.release)
        values = dict.fromkeys(VALUES) | report.values
        findings = diagnose(make_results(known | {"guidance": guidance, "reference": None}, values))
        assert findings[0].code == "wrong-reference", report.source
        # c2i_L_256 was measured at 2.0, a published guidance off its preset.
        assert set(codes(findings)[1:]) <= {"off-preset"}


def test_every_published_row_of_a_release_is_sound_in_its_own_protocol():
    for known in published():
        if known.release and known.kind == "result":
            protocol = {key: getattr(known, key) for key in ("model", "release", "drawn_at", "guidance")}
            findings = diagnose(make_results(protocol, dict.fromkeys(VALUES) | known.values, {"inception_score": None}))
            assert codes(findings)[-1] == "agrees" and not {"problem", "warning"} & {f.verdict for f in findings}


def test_a_fresh_draw_of_the_wrong_reference_is_still_recognised_but_not_without_its_model():
    values = {"FID": 6.2, "IS": 192.0, "precision": 0.75}
    assert codes(diagnose(make_results({"reference": None}, values))) == ["wrong-reference"]
    unknown = dict.fromkeys(("model", "release", "head", "drawn_at", "guidance", "reference"))
    assert codes(diagnose(make_results(unknown, values))) == ["no-comparison"]


def test_numbers_whose_protocol_is_not_said_are_compared_with_nothing():
    # IAR's rows state neither an evaluator nor how many images they are of.
    (finding,) = diagnose(Results([row("FID", 2.52, {}), row("IS", 248.1, {})]))
    assert finding.code == "no-comparison"


def test_faults_add_up_and_problems_come_first():
    findings = diagnose(make_results({"top_k": 100}, {}, {"label_map": "other", "tree_tokenizer_sha256": "b" * 64}))
    assert codes(findings) == ["tree-tokenizer", "off-preset", "label-map"]


def test_reconstructions_against_training_statistics():
    values = {"FID": 4.28, "IS": 160.0, "precision": None, "recall": None, "sFID": None}
    assert codes(diagnose(make_results(NAMELESS, values))) == ["reconstruction-reference", "no-comparison"]
    assert codes(diagnose(make_results(NAMELESS | {"reference": "mine"}, values))) == ["no-comparison"]
    assert codes(diagnose(make_results(NAMELESS, values | {"FID": 2.19}))) == ["no-comparison"]


def test_advice_is_a_command_that_can_be_typed():
    few = {"num_images": 3000}
    coco = few | {"protocol": "coco", "release": "t2i_XL_stage1_256", "labels": None}
    advice = {
        "`make sample RELEASE=c2i_B_256 SAMPLES=NEW_NAME ARGS=num_images=50000`": few,
        "`make sample RUN=... SAMPLES=NEW_NAME ARGS=num_images=50000`": few | {"release": None},
        "`make eval-coco RELEASE=t2i_XL_stage1_256 SAMPLES=NEW_NAME ARGS=num_images=30000`": coco,
        "make the images again (num_images=50000)": few | NAMELESS,
    }
    for words, protocol in advice.items():
        assert diagnose(make_results(protocol, {}, {"labels": None}))[0].advice.startswith(words)
    averaged = diagnose(make_results({"weights": "average"}))[0].advice
    assert "ARGS=release.use_ema=false" in averaged


def test_adms_published_samples_are_recognised_from_their_numbers():
    values = {"FID": 3.9434, "IS": 215.84, "sFID": 6.141, "precision": 0.826, "recall": 0.53}
    (finding,) = diagnose(make_results(NAMELESS, values, {"inception_score": None}))
    assert finding.code == "agrees" and "ADM's README" in finding.text


def test_a_model_of_other_data_is_compared_with_nothing():
    assert codes(diagnose(make_results(RUN | PAPER | {"data": "ffhq256"}, MASC_VALUES, FIFTY_EACH))) == [
        "no-comparison"
    ]


def test_an_embedded_result_is_not_compared_with_fid():
    protocol = {"num_images": 500, "extractor": "efficientnet-lite0", "guidance": 4.0, "top_k": 2000}
    (finding,) = diagnose(Results([row("FD-lite0", 80.0, protocol)]))
    assert finding.verdict == "fine"


def test_galleries_are_those_of_the_configs():
    for name, settings in GALLERIES.items():
        config = yaml.safe_load((CONFIGS / "sampling" / f"{name}.yaml").read_text())
        assert settings == {"guidance": config["guidance"], "top_k": config.get("top_k", 0)}


def test_a_runs_files_are_read_but_not_its_likelihood(tmp_path):
    make_results().save(tmp_path / "eval" / "default-adm.json")
    make_results({"top_k": 100}).save(tmp_path / "eval" / "other-adm.json")
    (tmp_path / "eval" / "likelihood.json").write_text("not read")
    files = read_results(str(tmp_path), None)
    assert [path.name for path in files] == ["default-adm.json", "other-adm.json"]
    assert list(read_results(None, str(tmp_path / "eval" / "other-adm.json"))) == [tmp_path / "eval" / "other-adm.json"]
    text = render_findings({path: diagnose(results) for path, results in files.items()})
    places = [text.index(words) for words in ("default-adm.json", "[agrees]", "other-adm.json", "top_k 100")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no results"),
        ("{", "JSON"),
        (WHOLE | {"rows": []}, "one or more rows"),
        (WHOLE | {"rows": [{"metric": "FID"}]}, "required at 0.value"),
        (WHOLE | {"rows": {"FID": 3}}, "valid array"),
        (WHOLE | {"rows": [{"metric": "FID", "value": None, "protocol": {}}]}, "at 0.value"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, words):
    path = tmp_path / "eval" / "default-adm.json"
    path.parent.mkdir()
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=words) as error:
        read_results(str(tmp_path), None)
    assert str(path.parent) in str(error.value)


@pytest.mark.parametrize("arguments", [(None, None), ("runs/x", "file.json")])
def test_a_run_or_a_file_must_be_named(arguments):
    with pytest.raises(InputError, match="name a run or a file: RUN="):
        read_results(*arguments)


def test_the_script_prints_and_ends_with_status_0_unless_the_input_is_bad(tmp_path, capsys):
    make_results({"reference_split": "val"}).save(tmp_path / "eval" / "default-adm.json")
    run_script("doctor", f"run={tmp_path}")
    assert "problem: The reference (adm-imagenet256) holds validation images" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^error: no results"):
        run_script("doctor", f"run={tmp_path / 'none'}")
