"""What a report's numbers support, and what they do not, in words that follow from the numbers."""

from typing import Any


def state_claims(
    table: list[dict[str, Any]], tokenizer: dict[str, Any] | None, sample_sets: list[str]
) -> list[dict[str, str]]:
    """Sentences with a verdict each: `supported`, `not supported` or `limit`.

    A difference of likelihoods counts only if it exceeds twice its uncertainty (the standard deviation over
    seeds, else the standard error over images of the two runs)."""
    rows = {row["label"]: row for row in table}
    flat, masc = rows.get("flat"), rows.get("masc")
    claims = []
    if flat and masc:
        claims += [_against_flat(masc, flat), *_decoding_cost(masc, flat)]
    if flat and "masc-two-level" in rows:
        claims.append(_against_flat(rows["masc-two-level"], flat))
    for other, name in (
        ("masc-on-random", "random clusters of the same sizes"),
        ("masc-on-kmeans", "k-means clusters"),
    ):
        if masc and other in rows:
            claims.append(_tree_against(masc, rows[other], name))
    if sample_sets and flat:
        claims.append(_samples(table, sample_sets[0]))
    if tokenizer:
        claims += _replacement(tokenizer)
    return [*claims, *_limits(table)]


def _uncertainty(*rows: dict[str, Any]) -> float:
    """Of a difference of means: from seeds where both have several, else from the held-out images."""
    if all(row["nats"]["sd"] is not None for row in rows):
        return sum(row["nats"]["sd"] ** 2 / len(row["seeds"]) for row in rows) ** 0.5
    return sum(row["nats"].get("se_over_images", 0.0) ** 2 for row in rows) ** 0.5


def _difference(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, str]:
    difference, uncertainty = a["nats"]["mean"] - b["nats"]["mean"], _uncertainty(a, b)
    kind = "over seeds" if all(row["nats"]["sd"] is not None for row in (a, b)) else "over images, unpaired"
    text = f"{abs(difference):.3f} nats per token (standard error {uncertainty:.3f} {kind})"
    if abs(difference) <= 2 * uncertainty:
        return 0.0, text
    return difference, text


def _against_flat(row: dict[str, Any], flat: dict[str, Any]) -> dict[str, str]:
    sign, text = _difference(row, flat)
    values = f"{row['nats']['mean']:.3f} against {flat['nats']['mean']:.3f}"
    if sign < 0:
        return _claim("supported", f"{row['label']} predicts held-out images better than flat: {values}, by {text}.")
    if sign > 0:
        return _claim("not supported", f"{row['label']} predicts held-out images worse than flat: {values}, by {text}.")
    return _claim(
        "not supported", f"{row['label']} and flat cannot be told apart on held-out images: {values}, {text}."
    )


def _decoding_cost(masc: dict[str, Any], flat: dict[str, Any]) -> list[dict[str, str]]:
    if len(masc["level_nats"]) != 2:
        return []
    cluster, member = masc["level_nats"]
    return [
        _claim(
            "supported",
            f"Of masc's {cluster + member:.3f} nats, {member:.3f} are the uniform draw of a member, which no "
            f"training can lower; the clusters themselves cost {cluster:.3f}.",
        )
    ]


def _tree_against(masc: dict[str, Any], other: dict[str, Any], name: str) -> dict[str, str]:
    sign, text = _difference(masc, other)
    if sign < 0:
        return _claim("supported", f"MASC's tree beats {name} under the same head: by {text}.")
    if sign > 0:
        return _claim("not supported", f"MASC's tree does worse than {name} under the same head: by {text}.")
    return _claim("not supported", f"MASC's tree and {name} cannot be told apart under the same head: {text}.")


def _samples(table: list[dict[str, Any]], name: str) -> dict[str, str]:
    measured = [(row["samples"][name]["FD-lite0"]["mean"], row["label"]) for row in table if name in row["samples"]]
    if not measured:
        return _claim("limit", "No samples were measured.")
    order = ", ".join(f"{label} {value:.1f}" for value, label in sorted(measured))
    verdict = "supported" if min(measured)[1] == "masc" else "not supported"
    return _claim(verdict, f"FD-lite0 of samples ({name}), best first: {order}. It compares with training images.")


def _replacement(tokenizer: dict[str, Any]) -> list[dict[str, str]]:
    psnr = {}
    for case in tokenizer["replacement"]:
        value = next(row["value"] for row in case["metrics"] if row["metric"] == "PSNR (dB)")
        psnr.setdefault(case["K"], {})[case["tree"]] = value
    num_clusters = max(psnr)
    found = psnr[num_clusters]
    claims = []
    if {"masc", "random"} <= set(found):
        gap = found["masc"] - found["random"]
        verdict = "supported" if gap > 3 else "not supported"
        claims.append(
            _claim(
                verdict,
                f"Tokens of a MASC cluster stand in for one another: replaced at random within clusters "
                f"(K = {num_clusters}) the picture keeps {found['masc']:.1f} dB, within random clusters of the same "
                f"sizes {found['random']:.1f} dB.",
            )
        )
    if {"masc", "kmeans"} <= set(found):
        pairs = [(k, v["masc"] - v["kmeans"]) for k, v in sorted(psnr.items(), reverse=True) if "kmeans" in v]
        text = ", ".join(f"{gap:+.2f} dB at K = {k}" for k, gap in pairs)
        verdict = "supported" if all(gap > 0 for _, gap in pairs) else "not supported"
        claims.append(_claim(verdict, f"MASC's clusters against k-means clusters in that test: {text}."))
    return claims


def _limits(table: list[dict[str, Any]]) -> list[dict[str, str]]:
    seeds = min(len(row["seeds"]) for row in table)
    limits = [
        "One small data set, one tokenizer of 1,024 tokens and a few hundred steps: nothing here supports or "
        "refutes the paper in its own regime (16,384 tokens, ImageNet, 300 epochs).",
    ]
    if seeds == 1:
        limits.append(
            "Some heads have one seed: differences as small as that between seeds mean nothing (try SEEDS=0,1,2)."
        )
    limits.append("Each head's learning rate was chosen on these held-out images: mildly optimistic, for all alike.")
    gap = max(row["nats"]["mean"] - row["train_nats"] for row in table)
    if gap > 0.3:
        limits.append(
            f"Models memorise: training loss lies up to {gap:.2f} nats below held-out, and metrics against training "
            "images reward that."
        )
    return [_claim("limit", text) for text in limits]


def _claim(verdict: str, text: str) -> dict[str, str]:
    return {"verdict": verdict, "text": text}
