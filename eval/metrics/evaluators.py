"""The evaluators of published numbers: the Inception weights that all of them use, and the resize of each.

Only names stand here, so that a reader of results loads no network."""

NAME = "inception-2015-12-05"  # of the Inception weights in the registry
SHA256_PREFIX = "6726825d"  # of the published file; both of its sources carry it in the file name
TF1_BILINEAR, HALF_PIXEL_BILINEAR, PIL_BICUBIC = "tf1-bilinear", "half-pixel-bilinear", "pil-bicubic"
RESIZE = {  # by evaluator
    "adm": TF1_BILINEAR,
    "torch-fidelity": TF1_BILINEAR,
    "pytorch-fid": HALF_PIXEL_BILINEAR,
    "clean-fid": PIL_BICUBIC,
}
