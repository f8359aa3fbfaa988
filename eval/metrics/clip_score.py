"""CLIP score (Hessel et al. 2021) with OpenAI's ViT-B/32, in the form that LlamaGen reports.

The score is the mean cosine of the image embedding and the embedding of "A photo depicts " + caption. It has neither
the paper's factor 2.5, nor a factor 100, nor a cut at zero. Follows FoundationVision/LlamaGen (ce98ec4),
evaluations/t2i/evaluation.py, whose splicing of tokens gives the tokens of that text. Differs: float32 throughout,
where OpenAI's loader computes in half precision on GPUs. Network and tokenizer come from open_clip (extra `t2i`)."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file
from masc.runtime.reading import reason
from metrics.bootstrap import bootstrap_interval
from metrics.inception import ARITHMETIC, exact_arithmetic
from metrics.results import row
from metrics.streams import Images, read_batches
from vq.hub.releases import RELEASES

NAME = "clip-vit-b-32"  # of the weights in the registry
FILE = RELEASES[NAME].files[0].name
# OpenAI trained with x sigmoid(1.702 x). open_clip's plain ViT-B-32 has the exact GELU: it loads the same tensors
# without a warning and gives different embeddings.
MODEL = "ViT-B-32-quickgelu"
TEXT = "A photo depicts "


@dataclass(frozen=True, eq=False)
class Clip:
    """The image and text networks, with the functions that prepare their inputs."""

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    name: str
    sha256: str

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def protocol(self) -> dict[str, Any]:
        import open_clip

        side = self.model.visual.image_size
        return {
            "evaluator": "LlamaGen's form, by open_clip",
            "extractor": self.name,
            "extractor_sha256": self.sha256,
            "open_clip": open_clip.__version__,
            "form": "mean cosine, not scaled",
            "text": f"{TEXT}<caption>",
            "preprocessing": f"Pillow bicubic to {side if isinstance(side, int) else side[0]}, OpenAI's mean and std",
            "arithmetic": ARITHMETIC,
        }


def load_clip(path: Path, sha256: str | None = None, device: torch.device | str = "cpu", name: str = MODEL) -> Clip:
    """open_clip's network `name` with the weights of a file, whose SHA-256 is checked if one is given.

    Raises InputError if open_clip is not installed, or if the file is missing, has another hash or other tensors."""
    try:
        import open_clip
    except ImportError as error:
        raise InputError(
            "the CLIP score needs the package open-clip-torch from this project's extra `t2i`; install the extra with "
            "pip install -e '.[t2i]'"
        ) from error
    path = Path(path)
    if not path.exists():
        raise MissingArtifact("weights", path, f"no weights of {name} at {path}", name=NAME)
    found = hash_file(path)
    if sha256 is not None and found != sha256:
        problem = f"the weights in {path} have SHA-256 {found}, expected {sha256}: truncated, or another network"
        raise MissingArtifact("weights", path, problem, remove=path.name == FILE, name=NAME)
    try:
        with _quietly():
            model = open_clip.create_model(name, pretrained=str(path), weights_only=True)
    except Exception as error:  # for damaged bytes open_clip, torch and safetensors raise errors of any type
        raise MissingArtifact(
            "weights",
            path,
            f"{path} does not hold the tensors of {name} ({reason(error, path)}); OpenAI's own ViT-B-32.pt is a "
            "program, which is not run here. Take open_clip's copy of its tensors",
            remove=path.name == FILE,  # a file of another name is the user's own
            name=NAME,
        ) from error
    model = model.eval().requires_grad_(False).to(device)
    # The defaults are OpenAI's: shorter side by bicubic, centre crop, its mean and deviation.
    transform = open_clip.image_transform(model.visual.image_size, is_train=False)
    return Clip(model, transform, open_clip.get_tokenizer(name), name, found)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence open_clip's log of its steps, which goes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def clip_cosines(
    images: Images, texts: list[str], clip: Clip, batch_size: int = 64, state: PartialState | None = None
) -> np.ndarray:
    """The cosine of each image and TEXT plus its caption: (M,) float64, the same in every process.

    Raises InputError if the numbers of texts and images differ."""
    if len(images) != len(texts):
        raise InputError(
            f"image i is compared with caption i, but there are {len(images):,} images and {len(texts):,} texts"
        )
    state = state or PartialState(cpu=not torch.cuda.is_available())
    starts = range(0, len(images), batch_size)[state.process_index :: state.num_processes]
    found = {}
    quiet = None if state.is_main_process else True
    with exact_arithmetic(), tqdm(total=len(starts), desc="CLIP score", unit="batch", disable=quiet) as bar:
        for start, batch in read_batches(images, starts, batch_size):
            prepared = torch.stack([clip.transform(Image.fromarray(image)) for image in batch]).to(clip.device)
            tokens = clip.tokenize([TEXT + text for text in texts[start : start + len(batch)]]).to(clip.device)
            similar = F.cosine_similarity(clip.model.encode_image(prepared), clip.model.encode_text(tokens))
            found[start] = similar.double().cpu().numpy()
            bar.update()
    if state.num_processes > 1:
        found = {start: rows for part in gather_object([found]) for start, rows in part.items()}
    return np.concatenate([found[start] for start in sorted(found)])


def clip_score(cosines: np.ndarray, clip: Clip, about: dict[str, Any], replicates: int) -> dict[str, Any]:
    """The row of the mean cosine, with its interval. `about` holds the origin of images and captions."""
    value = float(cosines.mean())
    interval = bootstrap_interval(value, len(cosines), lambda drawn: float(cosines[drawn].mean()), replicates)
    return row("CLIP score", value, {**clip.protocol, **about, "num_images": len(cosines)}, interval)
