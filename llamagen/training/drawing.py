"""Samples during a training: a grid, and FD-lite0, by the sampler of `make sample`.

The processes share the images in fixed batches, so that a sample depends on (seed, index) only, whatever their number.

Shapes: B images, T positions, M samples, H height, W width."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from llamagen.conditions.images import Conditions, Labels, draw_labels
from llamagen.evaluation.lite import load_run_reference, reference_path
from llamagen.model import ARModel
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.sampling.images import UNIT, decode_unit
from llamagen.training.config import TrainConfig
from llamagen.training.inputs import RunInputs
from llamagen.training.likelihood import on_device
from llamagen.training.stream import group_labels
from llamagen.training.tracking import GRID
from masc.runtime.beats import beat, rest
from masc.runtime.device import from_main
from masc.runtime.errors import InputError
from masc.runtime.files import replacing
from metrics.frechet import Gaussian, frechet_distance
from metrics.lite0 import POOLED, load_extractor, pool
from vq.pixels import image_grid
from vq.pretrained import load_decoder
from vq.readers import load_images

SHOWN = 64  # images in the grid
BATCH = 4 * UNIT  # images drawn together


class Drawing:
    """The samples of a run in training; what they need is opened before the first step."""

    def __init__(self, config: TrainConfig, inputs: RunInputs):
        """Raises InputError if the codebook, the tokenizer or the images of the data set are missing or damaged, or the
        model has no null condition for guidance."""
        self.config, self.inputs, watch = config, inputs, config.watch
        if watch.sampling.is_guided and config.model.class_dropout == 0:
            raise InputError(
                f"the model is trained without a null condition (model.class_dropout=0), so watch.sampling.guidance="
                f"{watch.sampling.guidance} has nothing to subtract; set watch.sampling.guidance=1"
            )
        self.tokenizer = load_decoder(config.layout.load_codebook(), config.layout)
        data = config.data
        if watch.distance and not reference_path(config.artifacts, data.name).exists():
            load_images(data.source, "train", data.resolution, data.path)
        self.conditions: Conditions = inputs.conditions["val"]  # of a text model: the first captions of held-out images
        if config.captions is None:
            self.conditions = Labels(draw_labels(group_labels(inputs.train), watch.sample_images, watch.seed))
        self.extractor: nn.Module | None = None
        self.reference: Gaussian | None = None  # of the main process

    def load_reference(self, device: torch.device) -> None:
        """Load what FD-lite0 needs, on all processes together; the main one makes the reference if it is missing."""
        if self.config.watch.distance:
            self.extractor = load_extractor().to(device)
            from_main(self._set_reference)

    def _set_reference(self) -> None:
        self.reference = Gaussian.of(load_run_reference(self.config, self.inputs.train, self.extractor).pooled)

    def draw(self, accelerator: Accelerator, model: ARModel, step: int) -> dict[str, float]:
        """Draw the samples after a step, write their grid to the run's directory, and return their distance by name.

        `model` is whole, in evaluation mode, on every process; all processes call this together."""
        watch, device = self.config.watch, accelerator.device
        self.tokenizer.to(device)
        shown, pooled = None, torch.zeros(watch.sample_images, POOLED, device=device)
        for start in range(accelerator.process_index * BATCH, watch.sample_images, accelerator.num_processes * BATCH):
            rows = np.arange(start, min(start + BATCH, watch.sample_images))
            images = self._images(accelerator, model, rows)
            if self.extractor is not None:
                pooled[start : start + len(rows)] = pool(self.extractor, images)
            shown = images[:SHOWN] if start == 0 else shown  # of the main process
            beat()
        rest()  # others may have a batch more
        model.backbone.end_decoding()
        self.tokenizer.to("cpu")
        features = None if self.extractor is None else accelerator.reduce(pooled, "sum").cpu().numpy()
        if not accelerator.is_main_process:
            return {}
        with replacing(Path(self.config.directory) / GRID.format(step)) as temporary:
            Image.fromarray(image_grid(shown, 8)).save(temporary, format="PNG")
        return {} if features is None else {watch.metric: frechet_distance(features, self.reference)}

    def _images(self, accelerator: Accelerator, model: ARModel, rows: np.ndarray) -> np.ndarray:
        """The samples with these indices: (B,) -> (B, H, W, 3) uint8."""
        watch, device = self.config.watch, accelerator.device
        shown = rows if self.config.captions is None else rows % self.inputs.held_out.num_images
        condition, mask = on_device(accelerator, *self.conditions.batch(shown))
        uniforms = image_uniforms(watch.seed, rows, model.backbone.num_positions, model.head.num_decisions)
        with accelerator.autocast():
            tokens = generate(model, condition, uniforms, watch.sampling, mask).cpu().numpy()
        units = range(0, len(rows), UNIT)
        return np.concatenate([decode_unit(self.tokenizer, tokens[at : at + UNIT], None, device) for at in units])
