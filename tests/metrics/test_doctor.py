"""Each diagnosis on a fabricated case that differs from a sound one by its own fault only."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from stage import CONFIGS

from masc.artifacts import InputError
from metrics.doctor import diagnose, read_results, render_findings
from metrics.doctor_evidence import FALSE_ALARM
from metrics.doctor_rules import GALLERIES
from metrics.published import published
from metrics.results import Results, row

PROTOCOL = {
    "protocol": "adm",
    "evaluator": "adm",
    "extractor": "inception-2015-12-05",
    "extractor_sha256": "6726825d" + "e" * 56,
    "resize": "tf1-bilinear",
    "arithmetic": {"dtype": "float32", "tf32": False},
    "num_images": 50_000,
    "image_size": 256,
    "images": "samples",
    "file_type": "tokens",
    "reference": "adm-imagenet256",
    "reference_sha256": "f" * 64,
    "reference_split": "train",
    "model": "llamagen-b",
    "release": "c2i_B_256",
    "head": "flat",
    "weights": "raw",
    "tokenizer_sha256": "a" * 64,
    "guidance": 2.0,
    "guidance_schedule": "constant",
    "guidance_interval": -1,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "labels": "uniform",
    "sampling_precision": "bf16",
    "seed": 0,
    "drawn_at": 256,
    "resolution": 256,
}
VALUES = {"FID": 5.46, "IS": 193.7, "sFID": 7.51, "precision": 0.838, "recall": 0.458}
EVIDENCE = {
    "labels": {"classes": 1000, "present": 1000, "fewest": 30, "most": 74, "sorted": False},
    "inception_score": {"file_order": 193.7, "shuffled": 193.6, "chunks": 10},
    "image_sizes": {"256x256": 50_000},
    "blockiness": 1.02,
    "nonfinite_features": 0,
    "sharpness": {"samples": 20.0, "reference": 22.0},
    "label_map": "sorted-wnids",
    "average_kept": False,
}
RUN = {"release": None, "head": "masc", "tree": "masc", "K": 8192, "images_seen": 300 * 1_281_167}
PAPER = {"protocol": "paper", "evaluator": "torch-fidelity", "reference": "imagenet256-train", "labels": "balanced"}
FIFTY_EACH = {"labels": {"classes": 1000, "present": 1000, "fewest": 50, "most": 50, "sorted": False}}
WHOLE = {"format": "masc-results", "version": 1, "rows": [], "evidence": {}}
MASC_VALUES = {"FID": 4.85, "IS": 205.0, "precision": 0.86, "recall": 0.48, "sFID": None}


def make_results(protocol=None, values=None, evidence=None):
    """A sound result of c2i_B_256 with some keys changed; None takes a key away."""

    def changed(base, changes):
        return {key: value for key, value in (base | (changes or {})).items() if value is not None}

    common = changed(PROTOCOL, protocol)
    return Results(
        [row(metric, value, common) for metric, value in changed(VALUES, values).items()], changed(EVIDENCE, evidence)
    )


def codes(findings):
    return [finding.code for finding in findings]


def test_a_sound_result_has_nothing_wrong_and_agrees_with_its_row():
    (finding,) = diagnose(make_results())
    assert (finding.code, finding.verdict) == ("agrees", "fine")
    for words in ("LlamaGen paper, Table 8", "FID 5.46 (published 5.464)", "FID 0.02"):
        assert words in finding.text


def test_a_sound_run_of_masc_agrees_with_masc():
    (finding,) = diagnose(make_results(RUN | PAPER, MASC_VALUES, FIFTY_EACH))
    assert finding.code == "agrees" and "MASC, Table 1" in finding.text


# Protocol, values, evidence that make the case; the one finding it must give; words its text must hold.
CASES = {
    "val npz as in LlamaGen#48": (
        {"reference": "imagenet256"},
        {"FID": 6.13, "IS": 193.6122, "precision": 0.751},
        {},
        "wrong-reference",
        "problem",
        ["LlamaGen#48", "FID 6.13 (published 5.464)", "0.751"],
    ),
    "val npz, and nobody knows the model": (
        dict.fromkeys(("model", "release", "head", "drawn_at", "guidance", "labels")) | {"images": "samples.npz"},
        {"FID": 6.13, "IS": 193.6122, "precision": 0.751},
        {},
        "wrong-reference",
        "problem",
        ["llamagen-b"],
    ),
    "val split named": (
        RUN | {"K": 100, "reference": "imagenet256-val", "reference_split": "val"},
        {},
        {},
        "wrong-reference",
        "problem",
        ["validation", "imagenet256-val"],
    ),
    "10,000 images": (
        {"num_images": 10_000},
        {},
        {"labels": None},
        "few-images",
        "problem",
        ["10,000", "5 times", "6.7"],
    ),
    "1,000 images": ({"num_images": 1000}, {}, {"labels": None}, "few-images", "problem", ["rank", "999"]),
    "COCO of 5,000": (
        {"protocol": "coco", "num_images": 5000, "reference_split": "val", "release": "t2i_XL_stage1_256"},
        {},
        {"labels": None},
        "few-images",
        "problem",
        ["30,000", "6 times"],
    ),
    "a reference of 5,000": (
        {"reference": "mine", "reference_size": 5000},
        {},
        {},
        "small-reference",
        "warning",
        ["5,000"],
    ),
    "classes missing": (
        {},
        {},
        {"labels": {"classes": 1000, "present": 990, "fewest": 0, "most": 75, "sorted": False}},
        "classes-missing",
        "problem",
        ["10 of 1,000"],
    ),
    "classes missing, labels of an unknown plan": (
        {"labels": None},
        {},
        {"labels": {"classes": 1000, "present": 999, "fewest": 0, "most": 75, "sorted": False}},
        "classes-missing",
        "problem",
        ["1 of 1,000"],
    ),
    "one class too often": (
        {},
        {},
        {"labels": {"classes": 1000, "present": 1000, "fewest": 30, "most": 150, "sorted": False}},
        "class-histogram",
        "problem",
        ["uniform", "150"],
    ),
    "not balanced": (
        {"labels": "balanced"},
        {},
        {"labels": {"classes": 1000, "present": 1000, "fewest": 49, "most": 51, "sorted": False}},
        "class-histogram",
        "problem",
        ["balanced", "49 to 51"],
    ),
    "the paper's protocol with random labels": (
        RUN | PAPER | {"labels": "uniform"},
        MASC_VALUES,
        {},
        "class-plan",
        "warning",
        ["uniform"],
    ),
    "guidance between the published": (
        {"guidance": 1.8},
        {"FID": 6.0, "IS": 165.0},
        {},
        "off-preset",
        "warning",
        ["guidance 1.8", "guidance 2.0", "1.75: FID 6.116"],
    ),
    "top-k": ({"top_k": 100}, {}, {}, "off-preset", "warning", ["top_k 100", "top_k 0"]),
    "a run's temperature": (RUN | {"temperature": 0.9}, {}, {}, "off-preset", "warning", ["temperature 0.9"]),
    "LlamaGen's gallery": ({"guidance": 4.0, "top_k": 2000}, {}, {}, "gallery", "warning", ["looking"]),
    "a 384 release at 256": (
        {"release": "c2i_B_384", "guidance": 2.25},
        {"FID": 30.0, "IS": 60.0},
        {},
        "resolution",
        "problem",
        ["384 x 384", "24 tokens", "256"],
    ),
    "numbers of the other resolution": (
        {},
        {"FID": 6.09, "IS": 182.6, "precision": None, "recall": None, "sFID": None},
        {"inception_score": None},
        "other-resolution",
        "warning",
        ["384 px", "guidance 2.25"],
    ),
    "numbers of another guidance": (
        {},
        {"FID": 8.74, "IS": 120.5, "precision": None, "recall": None, "sFID": None},
        {"inception_score": None},
        "other-guidance",
        "warning",
        ["guidance 1.5"],
    ),
    "sorted by class": (
        {},
        {},
        {
            "labels": EVIDENCE["labels"] | {"sorted": True},
            "inception_score": {"file_order": 48.0, "shuffled": 193.6, "chunks": 10},
        },
        "sorted-samples",
        "problem",
        ["48", "193.6", "sorted by class"],
    ),
    "sorted, scores not known": (
        {},
        {},
        {"labels": EVIDENCE["labels"] | {"sorted": True}, "inception_score": None},
        "sorted-samples",
        "warning",
        ["sorted"],
    ),
    "JPEG files": (
        {"file_type": "jpeg"},
        {},
        {"file_types": {"png": 49_000, "jpeg": 1000}},
        "jpeg",
        "problem",
        ["1,000 pictures are files of jpeg"],
    ),
    "JPEG in its protocol only": ({"file_type": "jpeg"}, {}, {}, "jpeg", "problem", ["50,000 pictures"]),
    "once JPEG": (
        {"file_type": "png", "images": "pictures"},
        {},
        {"blockiness": 1.25},
        "jpeg",
        "warning",
        ["1.25"],
    ),
    "pytorch-fid's kernel": (
        {"resize": "half-pixel-bilinear"},
        {},
        {},
        "resize-kernel",
        "problem",
        ["half-pixel-bilinear", "tf1-bilinear"],
    ),
    "384 pixels": ({}, {}, {"image_sizes": {"384x384": 50_000}}, "image-sizes", "warning", ["384x384"]),
    "two sizes": (
        {},
        {},
        {"image_sizes": {"256x256": 49_999, "128x128": 1}},
        "image-sizes",
        "problem",
        ["1 of 128x128"],
    ),
    "enlarged": (
        {},
        {},
        {"sharpness": {"samples": 8.0, "reference": 20.0}},
        "sharpness",
        "warning",
        ["0.40", "blurred"],
    ),
    "raw weights": (RUN, {}, {"average_kept": True}, "raw-weights", "warning", ["averaged"]),
    "label map": ({}, {}, {"label_map": "other"}, "label-map", "warning", ["360"]),
    "tree of another tokenizer": (
        RUN,
        {},
        {"tree_tokenizer_sha256": "b" * 64},
        "tree-tokenizer",
        "problem",
        ["b" * 12, "a" * 12],
    ),
    "non-finite features": ({}, {}, {"nonfinite_features": 3}, "non-finite", "problem", ["3 features"]),
    "FID not a number": ({}, {"FID": float("nan")}, {}, "non-finite", "problem", ["FID"]),
    "TF32": ({"arithmetic": {"dtype": "float32", "tf32": True}}, {}, {}, "arithmetic", "problem", ["TF32"]),
    "bf16 features": ({"arithmetic": {"dtype": "bfloat16"}}, {}, {}, "arithmetic", "problem", ["bfloat16"]),
    "drawn in fp16": ({"sampling_precision": "fp16"}, {}, {}, "sampling-precision", "warning", ["fp16"]),
    "torchvision's Inception": ({"extractor": "inception-v3-tv"}, {}, {}, "extractor", "problem", ["inception-v3-tv"]),
    "other weights of the Inception": (
        {"extractor_sha256": "5" * 64},
        {},
        {},
        "extractor-weights",
        "problem",
        ["5" * 12, "6726825d"],
    ),
    "no cause in the file": (
        {},
        {"FID": 9.0, "IS": 150.0},
        {"inception_score": None},
        "unexplained",
        "warning",
        ["FID 9 (published 5.464)"],
    ),
}


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


# Remarks beside which the result is still sound.
NOTES = {
    "a published guidance off the preset": (
        {"guidance": 1.75},
        {"FID": 6.12, "IS": 159.0, "precision": None, "recall": None, "sFID": None},
        {},
        "off-preset",
    ),
    "averaged weights": ({"weights": "average"}, {}, {}, "averaged-weights"),
    "60,000 images": ({"num_images": 60_000}, {}, {"labels": None}, "many-images"),
    "MASC at its gallery's guidance": (RUN | PAPER | {"guidance": 2.5}, MASC_VALUES, FIFTY_EACH, "gallery"),
    "MASC under ADM's evaluator": (RUN, {}, {}, "across-evaluators"),
    "off MASC's number at an unstated guidance": (RUN | PAPER, {"FID": 7.0}, FIFTY_EACH, "unexplained"),
}


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
    findings = diagnose(make_results({"top_k": 100}, {}, {"label_map": "other", "nonfinite_features": 2}))
    assert codes(findings) == ["non-finite", "off-preset", "label-map"]


NAMELESS = dict.fromkeys(("model", "release", "head", "drawn_at", "guidance", "labels")) | {"images": "pictures.npz"}


def test_reconstructions_against_training_statistics():
    values = {"FID": 4.28, "IS": 160.0, "precision": None, "recall": None, "sFID": None}
    assert codes(diagnose(make_results(NAMELESS, values))) == ["reconstruction-reference", "no-comparison"]
    assert codes(diagnose(make_results(NAMELESS | {"reference": "mine"}, values))) == ["no-comparison"]
    assert codes(diagnose(make_results(NAMELESS, values | {"FID": 2.19}))) == ["no-comparison"]


# What rules must not take for a fault: protocol, evidence.
HEALTHY = {
    "one chunk in order of class": (
        {"num_images": 1000, "labels": "balanced"},
        {
            "labels": {"classes": 1000, "present": 1000, "fewest": 1, "most": 1, "sorted": True},
            "inception_score": {"file_order": 50.0, "shuffled": 50.0, "chunks": 1},
        },
        {"few-images"},
    ),
    "a rare class of other data": (
        RUN | {"data": "birds", "labels": "training"},
        {"labels": {"classes": 1000, "present": 998, "fewest": 0, "most": 900, "sorted": False}},
        {"across-evaluators", "no-comparison"},
    ),
    "a decoder with a grain of 8 pixels": ({}, {"blockiness": 1.3}, {"agrees"}),
    "a model of small pictures": (
        RUN
        | {"model": "llamagen-tiny", "data": "twemoji", "drawn_at": 32, "image_size": 32}
        | {"reference": "twemoji-train", "reference_size": 20_292},
        {"image_sizes": {"32x32": 50_000}},
        {"no-comparison"},
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_healthy_is_not_called_a_fault(name):
    protocol, evidence, expected = HEALTHY[name]
    assert set(codes(diagnose(make_results(protocol, {}, evidence)))) == expected


def test_advice_is_a_command_that_can_be_typed():
    few = {"num_images": 3000}
    coco = few | {"protocol": "coco", "release": "t2i_XL_stage1_256", "labels": None}
    advice = {
        "`make sample RELEASE=c2i_B_256 SAMPLES=NEW_NAME ARGS=num_images=50000`": few,
        "`make sample RUN=... SAMPLES=NEW_NAME ARGS=num_images=50000`": few | {"release": None},
        "`make eval-coco RELEASE=t2i_XL_stage1_256 SAMPLES=NEW_NAME ARGS=num_images=30000`": coco,
        "make the pictures anew (num_images=50000)": few | NAMELESS,
    }
    for words, protocol in advice.items():
        assert diagnose(make_results(protocol, {}, {"labels": None}))[0].advice.startswith(words)
    averaged = diagnose(make_results({"weights": "average"}))[0].advice
    assert "ARGS=release.use_ema=false" in averaged


def test_adms_published_samples_are_recognised_from_their_numbers():
    values = {"FID": 3.9434, "IS": 215.84, "sFID": 6.141, "precision": 0.826, "recall": 0.53}
    (finding,) = diagnose(make_results(NAMELESS, values, {"inception_score": None}))
    assert finding.code == "agrees" and "ADM's README" in finding.text


def test_an_own_evaluator_with_its_own_resize_is_no_fault():
    protocol = {"protocol": "pytorch-fid", "evaluator": "pytorch-fid", "resize": "half-pixel-bilinear"}
    assert codes(diagnose(make_results(protocol))) == ["across-evaluators", "no-comparison"]


def test_evidence_that_is_not_there_is_passed_over():
    assert codes(diagnose(make_results(evidence=dict.fromkeys(EVIDENCE)))) == ["agrees"]
    assert codes(diagnose(make_results(evidence={"sharpness": {"samples": 20.0}}))) == ["agrees"]


def test_a_model_of_other_data_is_compared_with_nothing():
    assert codes(diagnose(make_results(RUN | PAPER | {"data": "ffhq256"}, MASC_VALUES, FIFTY_EACH))) == [
        "no-comparison"
    ]


def test_other_files_of_the_model_under_another_protocol():
    ours, other = make_results(), make_results({"evaluator": "clean-fid", "resize": "pil-bicubic"})
    assert codes(diagnose(ours, [other])) == ["mixed-protocols", "agrees"]
    assert codes(diagnose(ours, [make_results({"guidance": 1.5})])) == ["agrees"]
    assert codes(diagnose(ours, [make_results({"model": "llamagen-l", "num_images": 10_000})])) == ["agrees"]


def test_an_embedded_result_is_not_compared_with_fid():
    protocol = {"num_images": 500, "extractor": "efficientnet-lite0", "guidance": 4.0, "top_k": 2000}
    (finding,) = diagnose(Results([row("FD-lite0", 80.0, protocol)]))
    assert finding.verdict == "fine"


def test_truly_uniform_labels_are_rarely_called_uneven():
    # 300 draws at a false-alarm rate of at most 0.001: more than 4 alarms have a chance below 2e-5.
    generator, alarms = np.random.default_rng(0), 0
    assert FALSE_ALARM == 1e-3
    for _ in range(300):
        counts = generator.multinomial(50_000, np.full(1000, 1e-3))
        seen = {"classes": 1000, "present": 1000, "fewest": int(counts.min()), "most": int(counts.max())}
        alarms += "class-histogram" in codes(diagnose(make_results({}, {}, {"labels": seen})))
    assert alarms <= 4


def test_labels_of_unequal_chances_are_called_uneven():
    chances = np.linspace(0.5, 1.5, 1000)
    counts = np.random.default_rng(0).multinomial(50_000, chances / chances.sum())
    seen = {"classes": 1000, "present": 1000, "fewest": int(counts.min()), "most": int(counts.max())}
    assert codes(diagnose(make_results({}, {}, {"labels": seen}))) == ["class-histogram"]
    assert codes(diagnose(make_results({"labels": "training"}, {}, {"labels": seen}))) == ["agrees"]


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
        ("{", "truncated"),
        (WHOLE | {"rows": []}, "rows of metric"),
        (WHOLE | {"rows": [{"metric": "FID"}]}, "rows of metric"),
        (WHOLE | {"rows": {"FID": 3}}, "rows of metric"),
        (WHOLE | {"rows": [{"metric": "FID", "value": None, "protocol": {}}]}, "rows of metric"),
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
    with pytest.raises(InputError, match="make doctor"):
        read_results(*arguments)


def test_the_script_prints_and_ends_with_status_0_unless_the_input_is_bad(root, tmp_path):
    make_results({"reference_split": "val"}).save(tmp_path / "eval" / "default-adm.json")
    command = [sys.executable, "scripts/doctor.py"]
    done = subprocess.run([*command, f"run={tmp_path}"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "problem: The reference (adm-imagenet256) is of validation images" in done.stdout
    failed = subprocess.run([*command, f"run={tmp_path / 'none'}"], cwd=root, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith("error: no results")
