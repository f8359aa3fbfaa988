"""Evidence of images: healthy images are no fault, and random labels are called uneven as rarely as stated."""

import numpy as np
import pytest
from doctor_cases import EVIDENCE, RUN, codes, make_results

from reports.doctor.doctor import diagnose
from reports.doctor.evidence import FALSE_ALARM

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
    "a model of small images": (
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


def test_an_own_evaluator_with_its_own_resize_is_no_fault():
    protocol = {"protocol": "pytorch-fid", "evaluator": "pytorch-fid", "resize": "half-pixel-bilinear"}
    assert codes(diagnose(make_results(protocol))) == ["across-evaluators", "no-comparison"]


def test_evidence_that_is_not_there_is_passed_over():
    assert codes(diagnose(make_results(evidence=dict.fromkeys(EVIDENCE)))) == ["agrees"]
    assert codes(diagnose(make_results(evidence={"sharpness": {"samples": 20.0}}))) == ["agrees"]


def test_other_files_of_the_model_under_another_protocol():
    ours, other = make_results(), make_results({"evaluator": "clean-fid", "resize": "pil-bicubic"})
    assert codes(diagnose(ours, [other])) == ["mixed-protocols", "agrees"]
    assert codes(diagnose(ours, [make_results({"guidance": 1.5})])) == ["agrees"]
    assert codes(diagnose(ours, [make_results({"model": "llamagen-l", "num_images": 10_000})])) == ["agrees"]


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
