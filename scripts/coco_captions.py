"""Choose the captions that samples show on COCO, one for each image, by a seed (`make coco-captions`)."""

from stage import run_stage

from llamagen.evaluation.coco import ChoiceConfig, make_captions
from metrics.coco_protocol import load_captions


def main(config: ChoiceConfig) -> None:
    """Write artifacts/coco/captions_<split>-<images>-seed<seed>.json and its ids, or LlamaGen's table as lines."""
    path = make_captions(config)
    captions = load_captions(path)
    ids = f", ids {captions.ids_sha256}" if captions.ids_sha256 else " without image ids"
    print(f"{path}: {len(captions):,} captions{ids}; encode them with `make text-features CAPTIONS={path}`")


if __name__ == "__main__":
    run_stage("coco_captions", ChoiceConfig, main)
