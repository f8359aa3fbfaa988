"""Fabricated runs and results for the tests of the page over all runs, and what is made of them."""

import json

import yaml

from metrics.results import Results, row
from reports.comparison import compare, entries
from reports.curves import all_lines, draw
from reports.runs import NATS
from reports.subjects import find_subjects

PROTOCOL = {
    "protocol": "adm",
    "evaluator": "adm",
    "extractor": "inception-2015-12-05",
    "extractor_sha256": "6726825d" + "e" * 56,
    "resize": "tf1-bilinear",
    "num_images": 50_000,
    "image_size": 256,
    "images": "samples",
    "model": "llamagen-b",
    "data": "imagenet256",
    "drawn_at": 256,
    "guidance": 2.0,
    "seed": 0,
}
REFERENCE = {"reference": "adm-imagenet256", "reference_sha256": "f" * 64}
# Names that act where they are not taken as text.
HOSTILE = {
    "script": '"><script>alert(1)</script>',
    "image": "![x](http://elsewhere/x.png) <img src=x onerror=alert(1)>",
    "link": "[x](javascript:alert(1)) [y][z] [y]: javascript:z",
    "template": "{{ 7 * 191 }} {% raw %} ${oc.env:SECRET}",
    "cells": "a | b \\| c\n\n# d",
    "terminal": "\x1b[2Jred \u202e \x00",
    "mathematics": r"$\frac{ $x$",
}
MASC = {"head": "masc", "tree": "masc", "K": 8192}


def make_run(root, label="flat", seed=0, nats=(7, 6, 5), model="llamagen-b", num_clusters=None, **more):
    """A run with a validation row every 10 steps of 32 images and 3,600 seconds; `more` are other metrics' values."""
    directory = root / model / label / f"seed{seed}"
    directory.mkdir(parents=True)
    head, _, tree = label.partition("-on-")
    config = {
        "seed": seed,
        "run_dir": str(directory),
        "tokenizer_name": "vq16",
        "model": {"name": model},
        "head": {"name": head, "num_clusters": num_clusters},
        "tree": {"name": tree or "masc"},
        "data": {"name": "imagenet256"},
        "steps": 10 * (len(nats) - 1),
        "batch_size": 32,
        "optim": {"learning_rate": 0.001, "table_scale": 4.0},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    (directory / "provenance.json").write_text(json.dumps({"commit": "abc", "parents": {"val codes": "c" * 64}}))
    rows = [
        {"step": 10 * i, "images": 320 * i, "seconds": 3600.0 * i, NATS: value}
        | {metric if "/" in metric else metric.replace("_", " "): values[i] for metric, values in more.items()}
        for i, value in enumerate(nats)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def measured(directory, name="default-adm", fid=5.5, protocol=None, half=0.05):
    """FID with an interval, and IS, which has no reference."""
    common = PROTOCOL | {"head": "flat", **(protocol or {})}
    reference = {key: common.pop(key, value) for key, value in REFERENCE.items()}
    interval = {"low": fid - half, "high": fid + half, "level": 0.95, "method": "bootstrap", "replicates": 20}
    rows = [row("FID", fid, common | reference, interval), row("IS", 190.0, common | {"form": "adm"})]
    Results(rows).save(directory / "eval" / f"{name}.json")


def tables_of(root, files=()):
    subjects, skipped = find_subjects(root, list(files))
    assert not skipped
    return compare(entries(subjects))


def curves_of(root, targets=None, metrics=()):
    subjects, _ = find_subjects(root, [])
    return {
        each["metric"]: each for each in draw(all_lines(subjects, entries(subjects), metrics), targets or {}, "flat")
    }
