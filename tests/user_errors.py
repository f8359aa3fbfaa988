"""What a user reads when a stage ends with an error."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from messages import explain

from masc.runtime.errors import InputError


@contextmanager
def tells(pattern: str) -> Iterator[None]:
    """The block raises an InputError, and the text that a script prints for it matches `pattern`."""
    with pytest.raises(InputError) as caught:
        yield
    assert re.search(pattern, explain(caught.value)), explain(caught.value)
