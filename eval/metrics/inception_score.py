"""The Inception Score (Salimans et al. 2016) from any classifier's logits, as ADM and torch-fidelity define it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics.frechet import check_features

FORMS: dict[str, dict[str, Any]] = {
    # openai/guided-diffusion, evaluations/evaluator.py: consecutive chunks in the order of the file, the last shorter.
    "adm": {"chunk": 5000, "order": "file order"},
    # torch-fidelity 0.4, metric_isc.py: ten splits of a seeded permutation.
    "torch-fidelity": {"splits": 10, "order": "RandomState(2020)"},
}


def form_chunks(form: str, num_images: int) -> list[np.ndarray]:
    """The image indices of each split."""
    if form == "adm":
        size = FORMS["adm"]["chunk"]
        return [np.arange(start, min(start + size, num_images)) for start in range(0, num_images, size)]
    splits = FORMS["torch-fidelity"]["splits"]
    order = np.random.RandomState(2020).permutation(num_images)
    return [order[i * num_images // splits : (i + 1) * num_images // splits] for i in range(splits)]


def inception_score(logits: np.ndarray | Tensor, chunks: list[np.ndarray] | None = None) -> float:
    """Mean over chunks of exp(mean KL(p(y | x) || p(y))), logits (M, classes), in float64.

    Without `chunks` all samples form one chunk: with a thousand samples, each of ten splits would hold too few for
    p(y). ADM and torch-fidelity both use logits without the layer's bias. Raises InputError for no logits, and for
    logits that are not finite."""
    check_features(logits, "the logits")
    logits = torch.as_tensor(logits)
    chunks = [np.arange(len(logits))] if chunks is None else [chunk for chunk in chunks if len(chunk)]
    return float(np.mean([_one_score(logits[torch.from_numpy(chunk).to(logits.device)]) for chunk in chunks]))


def _one_score(logits: Tensor) -> float:
    log_conditional = logits.double().log_softmax(1)
    conditional = log_conditional.exp()
    log_marginal = conditional.mean(0).clamp_min(torch.finfo(torch.float64).tiny).log()
    # 0 log 0 is 0: where a probability underflows its logarithm stays finite here.
    return float((conditional * (log_conditional - log_marginal)).sum(1).mean().exp())
