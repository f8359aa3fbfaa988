"""Claims of a report: sentences with a verdict, computed from the numbers."""

from math import isfinite
from typing import Any

import numpy as np

from masc.runtime.run import split_label
from reports.paired import estimate, paired_differences
from reports.runs import BASELINE

TREE_WORDS = {"random": "random clusters of the same sizes", "kmeans": "k-means clusters"}  # in the order of claims


def state_claims(
    table: list[dict[str, Any]], tokenizer: dict[str, Any] | None, sample_sets: list[str]
) -> list[dict[str, str]]:
    """Sentences, each with a verdict.

    Differences of likelihood are paired by seed and tested by a two-sided Student interval of 95%: `supported` and
    `not supported` if the interval excludes zero, `undecided` if it contains zero, `one seed` without several seeds.
    `measured` marks facts without a test, `limit` the limits of the experiment."""
    rows = {row["label"]: row for row in table}
    heads = [label for label in rows if label != BASELINE and split_label(label)[1] == "masc"]
    claims = []
    for label in heads if BASELINE in rows else []:
        words = f"{label} predicts held-out images", f"than {BASELINE}"
        claims.append(_compare(rows[label], rows[BASELINE], *words))
        claims += _decoding_cost(rows[label])
    for head in heads:
        for label, tree in on_other_trees(head, list(rows)).items():
            words = f"Under {head}'s head MASC's tree does", f"than {TREE_WORDS.get(tree, f'{tree} clusters')}"
            claims.append(_compare(rows[head], rows[label], *words))
    if sample_sets:
        claims += _samples(table, sample_sets[0])
    if tokenizer and "replacement" in tokenizer:
        claims += _replacement(tokenizer["replacement"])
    return [*claims, *_limits(table)]


def on_other_trees(head: str, labels: list[str]) -> dict[str, str]:
    """The labels of a head's runs on other trees than MASC's, with their trees; those of TREE_WORDS come first."""
    parts = {label: split_label(label) for label in labels}
    mine, _, trained_by = split_label(head)
    found = {label: tree for label, (own, tree, loss) in parts.items() if (own, loss) == (mine, trained_by)}
    found = {label: tree for label, tree in found.items() if tree != "masc"}
    order = list(TREE_WORDS)
    return dict(sorted(found.items(), key=lambda item: order.index(item[1]) if item[1] in order else len(order)))


def _compare(row: dict[str, Any], other: dict[str, Any], subject: str, than: str) -> dict[str, str]:
    """The claim that `row` has fewer nats per token, and so a better likelihood, than `other`."""
    mine, theirs = (dict(zip(r["seeds"], r["nats"]["by_seed"], strict=True)) for r in (row, other))
    differences = paired_differences(mine, theirs)
    if not differences:
        return _claim("undecided", f"{row['label']} and {other['label']} cannot be compared: no seed has both runs.")
    found = estimate(differences)
    values = f"{row['nats']['mean']:.3f} against {other['nats']['mean']:.3f} nats per token"
    word = "better" if found.mean < 0 else "worse"
    if found.low is None:
        return _claim("one seed", f"{subject} {word} {than}: {values}, on one seed.")
    interval = f"difference {found.mean:+.3f}, 95% interval {found.low:+.3f} to {found.high:+.3f}, {found.count} seeds"
    if not found.excludes_zero:
        return _claim(
            "undecided", f"{subject} neither better nor worse {than} within the interval: {values}; {interval}."
        )
    verdict = "supported" if found.mean < 0 else "not supported"
    return _claim(verdict, f"{subject} {word} {than}: {values}; {interval}.")


def _decoding_cost(row: dict[str, Any]) -> list[dict[str, str]]:
    if row["label"] != "masc" or len(row["level_nats"]) != 2:  # levels that were not measured are no list of two
        return []
    cluster, member = row["level_nats"]
    text = (
        f"masc's {cluster + member:.3f} nats: {cluster:.3f} are the choice of the cluster, {member:.3f} are the "
        "uniform draw of a member, which training cannot lower."
    )
    return [_claim("measured", text)]


def _samples(table: list[dict[str, Any]], name: str) -> list[dict[str, str]]:
    means = {row["label"]: row["samples"][name]["FD-lite0"]["mean"] for row in table}
    measured = {label: value for label, value in means.items() if value is not None}
    if not measured:
        return []
    order = ", ".join(f"{label} {measured[label]:.1f}" for label in sorted(measured, key=measured.get))
    missing = ", ".join(label for label in means if label not in measured)
    text = (
        f"FD-lite0 of the samples ({name}), lowest first: {order}{missing and f'; not measured: {missing}'}. The "
        "reference consists of training images."
    )
    return [_claim("measured", text)]


def _replacement(cases: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Claims from the replacement test: means over its seeds, with differences paired by seed."""
    psnr: dict[int, dict[str, list[float]]] = {}
    for case in cases:
        if values := _psnr_by_seed(case):
            psnr.setdefault(case["K"], {})[case["tree"]] = values
    if not psnr:
        return []
    claims = []
    num_clusters, found = max(psnr.items())
    if {"masc", "random"} <= set(found):
        text = (
            f"Semantic replacement: with tokens swapped at random within MASC's clusters (K = {num_clusters}) the "
            f"image keeps {np.mean(found['masc']):.1f} dB, within random clusters of the same sizes "
            f"{np.mean(found['random']):.1f} dB."
        )
        claims.append(_claim("measured", text))
    for tree, name in (("kmeans", "k-means"), ("ward", "Ward's")):
        gaps = [
            (k, [mine - theirs for mine, theirs in zip(by_tree["masc"], by_tree[tree], strict=True)])
            for k, by_tree in sorted(psnr.items(), reverse=True)
            if {"masc", tree} <= set(by_tree) and len(by_tree["masc"]) == len(by_tree[tree])
        ]
        if gaps:
            listed = ", ".join(f"{_signed(values)} dB at K = {k}" for k, values in gaps)
            claims.append(_claim("measured", f"MASC's clusters minus {name} clusters in that test: {listed}."))
    return claims


def _psnr_by_seed(case: dict[str, Any]) -> list[float]:
    """PSNR within a tree's clusters for each seed; empty if it was not measured for one."""
    found = next((row["protocol"] for row in case["metrics"] if row["metric"] == "PSNR (dB)"), {})
    values = found.get("by_seed", [])
    return values if all(map(isfinite, values)) else []


def _signed(values: list[float]) -> str:
    """The mean, and the standard deviation of several values."""
    return f"{np.mean(values):+.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def _limits(table: list[dict[str, Any]]) -> list[dict[str, str]]:
    limits = [
        "One small data set, one small tokenizer and a short training: nothing here supports or refutes the paper in "
        "its own regime (16,384 tokens, ImageNet, 300 epochs).",
        "Learning rates were chosen on these held-out images for flat, masc and masc-two-level; masc on another tree "
        "uses masc's rate.",
    ]
    if min(len(row["seeds"]) for row in table) == 1:
        limits.append("Some heads have one seed: differences no larger than those between seeds prove nothing.")
    gaps = [row["nats"]["mean"] - row["train_nats"] for row in table if row["train_nats"] is not None]
    if (gap := max(gaps, default=0.0)) > 0.3:
        limits.append(
            f"Models memorise: the training loss is up to {gap:.2f} nats below the held-out loss, and metrics against "
            "training images reward that."
        )
    return [_claim("limit", text) for text in limits]


def _claim(verdict: str, text: str) -> dict[str, str]:
    return {"verdict": verdict, "text": text}
