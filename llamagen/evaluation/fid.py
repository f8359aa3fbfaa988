"""The evaluation loop, and its plain form `make eval-fid`: FID, sFID, IS, precision and recall of any images.

One pass of the Inception network serves every protocol with the same images and resize. Samples that are not there are
drawn, kept as tokens, and decoded straight into the network: no image is written."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from llamagen.evaluation.images import EvalFidConfig, find_images, first_images, open_images
from llamagen.evaluation.saved import save_beside
from llamagen.sampling.sets import SampleSet
from masc.runtime.device import patient_state
from masc.runtime.errors import InputError
from metrics.features import inception_features
from metrics.inception import Inception
from metrics.protocol import ProtocolConfig, measure
from metrics.reference import ReferenceStatistics, load_statistics
from metrics.streams import Images, open_samples

logger = logging.getLogger(__name__)


class Evaluation:
    """Images measured under the protocols of a config, each against the reference that it names.

    A subclass may find other references, choose other images, and add metrics."""

    def __init__(self, config: EvalFidConfig):
        """Raises InputError if the run or the images do not exist."""
        self.config, self.state = config, patient_state()
        self.found = find_images(config)

    @cached_property
    def model(self) -> Inception:
        return self.config.extractor.load(self.state)

    def find_reference(self, protocol: ProtocolConfig) -> str:
        """The name of a protocol's reference, for `load_statistics`."""
        return protocol.reference

    def choose(self, images: Images) -> Images:
        """The images to be measured, in order; InputError if there are too few."""
        return first_images(images, self.config.num_images)

    def about(self, protocol: ProtocolConfig) -> dict[str, Any]:
        """Protocol entries beside those of the images."""
        return {}

    def further_rows(self, protocol: ProtocolConfig, images: Images, about: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of metrics outside the Inception space; every process takes part."""
        return []

    def references(self) -> dict[str, ReferenceStatistics | None]:
        """The reference of each protocol, None outside the main process; InputError if one is missing or broken."""
        extractor, loaded, found = self.config.extractor, {}, {}
        for name, protocol in self.config.protocols.items():
            key = self.find_reference(protocol), protocol.resize
            if key not in loaded:
                folders = Path(extractor.artifacts), Path(extractor.folder)
                loaded[key] = load_statistics(
                    key[0], *folders, self.model, protocol.resize, extractor.batch_size, self.state
                )
            found[name] = loaded[key]
        return found

    def _check_unchanged(self, at_first: str) -> None:
        """Raise InputError if files were changed, added or removed while they were measured."""
        place = self.config.samples
        if not isinstance(self.found, SampleSet) and open_samples(Path(place)).state != at_first:
            raise InputError(f"{place} changed while it was measured; measure it again when nothing writes there")

    def run(self) -> list[Path]:
        """Write <eval>/<samples>-<protocol>.json for each protocol; return the files.

        References and weights are looked for before anything is drawn or measured."""
        config, state, references = self.config, self.state, self.references()
        measured = open_images(config, self.found, state.device)
        at_first = measured.images.state
        images = self.choose(measured.images)
        features, written = {}, []
        for name, protocol in config.protocols.items():
            if len(images) < protocol.num_images:
                logger.warning(
                    "%s: %s images, but the published numbers of this protocol are of %s; fewer give a higher FID",
                    name,
                    f"{len(images):,}",
                    f"{protocol.num_images:,}",
                )
            prepared, key = protocol.prepare(images), (protocol.preparation, protocol.resize)
            if key not in features:
                batch_size = config.extractor.batch_size
                features[key] = inception_features(prepared, self.model, protocol.resize, batch_size, state)
            about = measured.about | self.about(protocol)
            further = self.further_rows(protocol, prepared, about)
            if not state.is_main_process:
                continue
            self._check_unchanged(at_first)
            found = measure(protocol, features[key], references[name], self.model, about, config.bootstrap)
            found.rows.extend(further)
            found.evidence.update(measured.evidence)
            written.append(save_beside(found, measured.results.with_name(f"{measured.results.name}-{name}.json")))
        state.wait_for_everyone()
        return written


def evaluate_fid(config: EvalFidConfig) -> list[Path]:
    """Write <eval>/<samples>-<protocol>.json for each protocol; return the files.

    Raises InputError for what is missing or broken."""
    return Evaluation(config).run()
