"""Fabricated results for the tests of the doctor: a sound one, and cases with one fault each."""

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
    "sharpness": {"samples": 20.0, "reference": 22.0},
    "label_map": "sorted-wnids",
    "average_kept": False,
}
RUN = {"release": None, "head": "masc", "tree": "masc", "K": 8192, "images_seen": 300 * 1_281_167}
PAPER = {"protocol": "paper", "evaluator": "torch-fidelity", "reference": "imagenet256-train", "labels": "balanced"}
FIFTY_EACH = {"labels": {"classes": 1000, "present": 1000, "fewest": 50, "most": 50, "sorted": False}}
MASC_VALUES = {"FID": 4.85, "IS": 205.0, "precision": 0.86, "recall": 0.48, "sFID": None}
NAMELESS = dict.fromkeys(("model", "release", "head", "drawn_at", "guidance", "labels")) | {"images": "pictures.npz"}


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
    "LlamaGen's gallery": ({"guidance": 4.0, "top_k": 2000}, {}, {}, "gallery", "warning", ["for viewing"]),
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
        ["1,000 images are files of jpeg"],
    ),
    "JPEG in its protocol only": ({"file_type": "jpeg"}, {}, {}, "jpeg", "problem", ["50,000 images"]),
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
