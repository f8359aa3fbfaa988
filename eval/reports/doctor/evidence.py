"""Rules of `make doctor` about the images and about the networks that measured them; see doctor.py."""

from collections.abc import Iterator

from scipy.stats import binom

from metrics.evaluators import NAME, RESIZE, SHA256_PREFIX
from metrics.results import Protocol
from reports.doctor.rules import Case, Finding
from reports.published import is_imagenet, label_of

FALSE_ALARM = 1e-3  # probability that uniformly drawn labels are called uneven
SORTED_GAP = 0.02  # relative: IS in file order below IS in shuffled chunks; two shuffles differ by far less
# Blockiness of eight photographs at 256 px: 1.01 without JPEG, 1.10 with JPEG quality 90, 1.17 with 85, 1.27 with 75.
BLOCKY, SMALLEST = 1.1, 128
# Sharpness of the same photographs relative to the original: 0.40 enlarged from 128 px, 0.61 from 192 px.
BLURRED, HARSH = 0.62, 1.6


def tree_of_another_tokenizer(case: Case) -> Iterator[Finding]:
    tree, tokenizer = case.evidence.get("tree_tokenizer_sha256"), case.protocol.get("tokenizer_sha256")
    if None in (tree, tokenizer) or tree == tokenizer:
        return
    yield Finding(
        "tree-tokenizer",
        "problem",
        f"The tree was built from the tokenizer {tree[:12]}, the images were decoded by {tokenizer[:12]}: clusters "
        "of one codebook hold the wrong tokens of another.",
        "`make codebook TOKENIZER=...`, `make tree TOKENIZER=...` and train again with the tokenizer that decodes",
    )


def classes(case: Case) -> Iterator[Finding]:
    """Classes that are missing, or drawn less evenly than the plan of labels allows.

    `uniform`: the binomial tails of the fewest and the most images of a class, times the number of classes. At most
    FALSE_ALARM of uniform draws exceed this bound. `balanced`: the counts must be exact."""
    seen, count = case.evidence.get("labels"), case.protocol.get("num_images")
    if not seen or count is None:
        return
    number, fewest, most = seen["classes"], seen["fewest"], seen["most"]
    plan, mean = case.protocol.get("labels"), count / number
    counts = f"{fewest:,} to {most:,} images a class, {mean:.4g} on average over {number:,}"
    low = number * binom.cdf(fewest, count, 1 / number)
    high = number * binom.sf(most - 1, count, 1 / number)
    uneven = {
        "balanced": (fewest, most) != (count // number, -(-count // number)),
        "uniform": min(low, high) < FALSE_ALARM / 2,
    }.get(plan, False)
    # Expected even for a class half as common as the average: for training labels of ImageNet, or an unknown plan.
    # Classes of other data may be rarer.
    is_known = plan != "training" or is_imagenet(case.protocol)
    expected = is_known and number * (1 - 0.5 / number) ** count < FALSE_ALARM
    absent = seen["present"] < number and (uneven or expected)
    advice = f"{case.draw('labels=balanced')}, or labels=uniform as LlamaGen draws them"
    if absent:
        text = f"{number - seen['present']:,} of {number:,} classes have no image ({counts})."
        yield Finding("classes-missing", "problem", text, advice)
    elif uneven:
        text = f"The file says that labels are {plan}, but there are {counts}, so the labels do not follow that plan."
        yield Finding("class-histogram", "problem", text, advice)
    elif case.protocol.get("protocol") == "paper" and plan not in (None, "balanced"):
        text = f"MASC's protocol has equally many images of every class (50 of 1,000); these labels are {plan}."
        yield Finding("class-plan", "warning", text, case.draw("labels=balanced"))


def sorted_samples(case: Case) -> Iterator[Finding]:
    """Samples sorted by class: ADM's IS uses consecutive chunks of the file, and each sorted chunk holds few classes.

    With a single chunk the order does not matter."""
    protocol = case.results["IS"]["protocol"] if "IS" in case.values else {}
    if protocol.get("form", protocol.get("evaluator")) != "adm":
        return
    score = case.evidence.get("inception_score", {})
    known = {"file_order", "shuffled"} <= set(score) and score.get("chunks", 2) > 1
    gap = 1 - score["file_order"] / score["shuffled"] if known else 0.0
    is_sorted = case.evidence.get("labels", {}).get("sorted", False) and score.get("chunks", 2) > 1
    if gap <= SORTED_GAP and not (is_sorted and not known):
        return
    text = "The images are sorted by class" if is_sorted else "The images seem to be sorted in the file"
    if known:
        text += f": IS is {score['file_order']:.4g} over chunks in file order, {score['shuffled']:.4g} over shuffled"
    yield Finding(
        "sorted-samples",
        "problem" if known else "warning",
        f"{text}. The ADM evaluator takes chunks in file order, so its IS is too low.",
        "report the shuffled IS, or write the images in random order of class",
    )


def jpeg(case: Case) -> Iterator[Finding]:
    types = case.evidence.get("file_types") or {str(case.protocol.get("file_type")): case.protocol.get("num_images", 0)}
    files = [f"{number:,} images are files of {name}" for name, number in types.items() if "jpeg" in name]
    # Our samples are decoded from tokens: the decoder itself may make steps between 8-pixel blocks. Small images hold
    # too few blocks.
    small = case.protocol.get("image_size", 256) < SMALLEST
    blockiness = None if small or case.protocol.get("images") == "samples" else case.evidence.get("blockiness")
    if not case.is_fid or not (files or (blockiness is not None and blockiness > BLOCKY)):
        return
    seen = files.copy()
    if blockiness is not None:
        seen.append(f"steps across 8-pixel boundaries are {blockiness:.3g} times those elsewhere (1.01 without JPEG)")
    yield Finding(
        "jpeg",
        "problem" if files else "warning",
        f"{'; '.join(seen)}. JPEG's blocks change the features, and FID by more than the differences between methods.",
        f"keep images as PNG or npz: {case.draw('form=png')}",
    )


def resize(case: Case) -> Iterator[Finding]:
    """Resize before the extractor, sizes of the images, and sharpness relative to the reference."""
    protocol, sizes = case.protocol, case.evidence.get("image_sizes", {})
    kernel, expected = protocol.get("resize"), RESIZE.get(protocol.get("evaluator"))
    if case.is_fid and kernel and expected and kernel != expected:
        yield Finding(
            "resize-kernel",
            "problem",
            f"Images are resized for the extractor by {kernel}; the {protocol['evaluator']} evaluator uses {expected}. "
            "pytorch-fid's half-pixel kernel alone changes features by 1%, and FID with them.",
            "measure with the kernel of the evaluator: `make eval-fid`",
        )
    side = case.protocol.get("drawn_at", 256)
    small = side < 256 and set(sizes) == {f"{side}x{side}"}  # a model of small images, not a mistake
    if case.is_fid and sizes and set(sizes) != {"256x256"} and not small:
        listed = ", ".join(f"{number:,} of {size}" for size, number in sorted(sizes.items()))
        yield Finding(
            "image-sizes",
            "problem" if len(sizes) > 1 else "warning",
            f"Images are {listed}; published numbers use 256x256 (384 is resized to 256 by bicubic, before rounding).",
            case.draw("resolution=256"),
        )
    sharpness = case.evidence.get("sharpness", {})
    ratio = sharpness.get("samples", 0.0) / sharpness["reference"] if sharpness.get("reference") else None
    if ratio is not None and not BLURRED <= ratio <= HARSH:
        word, why = ("blurred", "enlarged from a smaller size") if ratio < 1 else ("harsh", "resized without smoothing")
        yield Finding(
            "sharpness",
            "warning",
            f"The images are {word}: their Laplacian is {ratio:.2f} times the reference's. They may have been {why}.",
            "compare a sample with a reference image by eye, and resize once, with antialiasing, to 256",
        )


def weights(case: Case) -> Iterator[Finding]:
    kind, averaged = case.protocol.get("weights"), case.evidence.get("average_kept")
    owner = "release." if case.protocol.get("release") else ""
    if kind == "raw" and averaged:
        yield Finding(
            "raw-weights",
            "warning",
            "The run keeps averaged weights, but the images are drawn from the raw weights, which are often worse.",
            f"{case.draw('use_ema=true')}, and state which weights you report",
        )
    if kind == "average" and str(case.protocol.get("model")).startswith("llamagen"):
        yield Finding(
            "averaged-weights",
            "note",
            "The images are drawn from averaged weights; LlamaGen's published numbers use raw weights.",
            f"{case.draw(f'{owner}use_ema=false')} for a comparison with them",
        )


def label_map(case: Case) -> Iterator[Finding]:
    if case.evidence.get("label_map") != "other":
        return
    yield Finding(
        "label-map",
        "warning",
        "Class indices do not follow the sorted WordNet ids, so released weights draw other classes than requested: "
        "class 360 shows no otter (LlamaGen#76). FID over all classes does not show it if each class is drawn equally "
        "often.",
        "order the class folders by WordNet id and make the codes again: `make codes DATA=imagenet256`",
    )


def extractor(case: Case) -> Iterator[Finding]:
    """The network of the features, its weights, and the arithmetic."""
    name, arithmetic = case.protocol.get("extractor"), case.protocol.get("arithmetic", {})
    if case.is_fid and name and name != NAME:
        yield Finding(
            "extractor",
            "problem",
            f"The features come from {name}, not from the Inception of 2015-12-05 (torchvision's Inception is another "
            "network): this is not FID.",
            "measure with `make eval-fid`",
        )
    elif case.is_fid and not str(case.protocol.get("extractor_sha256", SHA256_PREFIX)).startswith(SHA256_PREFIX):
        yield Finding(
            "extractor-weights",
            "problem",
            f"The Inception weights have SHA-256 {case.protocol['extractor_sha256'][:12]}, the published weights "
            f"{SHA256_PREFIX}...: these numbers compare with no published ones.",
            f"`make weights NAME={NAME}`, and measure again without naming other weights",
        )
    loose = [f"features in {name}" for name in ("bfloat16", "float16") if name == arithmetic.get("dtype")]
    loose += ["TF32 on"] * bool(arithmetic.get("tf32"))
    if loose:
        yield Finding(
            "arithmetic",
            "problem",
            f"The extractor ran with {' and '.join(loose)}: published numbers use float32 without TF32.",
            "`make eval-fid` turns both off; measure again with it",
        )
    if case.protocol.get("sampling_precision") == "fp16":
        yield Finding(
            "sampling-precision",
            "warning",
            "The transformer drew in fp16, which overflows where bf16 (as released) and fp32 do not.",
            case.draw("precision=bf16"),
        )


def mixed_protocols(case: Case) -> Iterator[Finding]:
    """Other FIDs of the same model that are not comparable with this one."""
    if not case.is_fid:
        return
    ours, differing = case.protocol, set()
    for results in case.others:
        theirs = results.by_metric.get("FID", {}).get("protocol")
        if theirs and (theirs.get("model"), label_of(theirs)) == (ours.get("model"), label_of(ours)):
            known = [key for key in Protocol.flagged("compared") if None not in (ours.get(key), theirs.get(key))]
            differing |= {key for key in known if ours[key] != theirs[key]}
    if differing:
        yield Finding(
            "mixed-protocols",
            "note",
            f"Other FIDs of this model differ from this one in {', '.join(sorted(differing))}: not to be compared.",
            "compare files of one protocol; `make report` keeps them apart",
        )
