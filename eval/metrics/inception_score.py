"""The Inception Score's formula (Salimans et al. 2016) over any classifier's logits."""

import numpy as np
from scipy.special import log_softmax


def inception_score(logits: np.ndarray) -> float:
    """exp(mean KL(p(y | x) || p(y))) over all samples at once: logits (M, classes), in float64.

    One split: with a thousand samples ten splits would each see too few for p(y)."""
    log_conditional = log_softmax(logits.astype(np.float64), axis=1)
    conditional = np.exp(log_conditional)
    marginal = conditional.mean(0)
    log_marginal = np.log(np.maximum(marginal, np.finfo(np.float64).tiny))
    return float(np.exp((conditional * (log_conditional - log_marginal)).sum(1).mean()))
