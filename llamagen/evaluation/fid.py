"""FID, sFID, IS, precision and recall of a run, a release, or any pictures (`make eval-fid`).

One pass of the Inception network serves every protocol with the same resize. Samples that are not there are drawn, kept
as tokens, and decoded straight into the network: no picture is ever written."""

import logging
from pathlib import Path

from llamagen.evaluation.images import EvalFidConfig, find_samples, open_images, save_beside, wanted_pictures
from masc.runtime.device import patient_state
from metrics.features import extract
from metrics.protocol import measure
from metrics.reference import load_statistics

logger = logging.getLogger(__name__)


def evaluate_fid(config: EvalFidConfig) -> list[Path]:
    """Write <eval>/<samples>-<protocol>.json for each protocol; return the files.

    References and weights are looked for before anything is drawn or measured. Raises InputError for what is missing
    or broken."""
    state = patient_state()
    samples = find_samples(config)
    model = config.extractor.load(state)
    references = {}
    for protocol in config.protocols.values():
        key = (protocol.reference, protocol.resize)
        if key not in references:
            folders = Path(config.extractor.artifacts), Path(config.extractor.folder)
            references[key] = load_statistics(
                protocol.reference, *folders, model, protocol.resize, config.extractor.batch_size, state
            )
    images = open_images(config, samples, state.device)
    pictures = wanted_pictures(config, images.pictures)
    features, written = {}, []
    for name, protocol in config.protocols.items():
        if len(pictures) < protocol.num_images:
            logger.warning(
                "%s: %s pictures, but the published numbers of this protocol are of %s; fewer give a higher FID",
                name,
                f"{len(pictures):,}",
                f"{protocol.num_images:,}",
            )
        if protocol.resize not in features:
            features[protocol.resize] = extract(pictures, model, protocol.resize, config.extractor.batch_size, state)
        if not state.is_main_process:
            continue
        reference = references[protocol.reference, protocol.resize]
        found = measure(protocol, features[protocol.resize], reference, model, images.about, config.bootstrap)
        found.evidence.update(images.evidence)
        written.append(save_beside(found, images.results.with_name(f"{images.results.name}-{name}.json")))
    state.wait_for_everyone()
    return written
