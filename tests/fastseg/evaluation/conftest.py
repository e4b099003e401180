import pytest

from fastseg.evaluation.scoring.scorer import Scorer


@pytest.fixture(scope="session")
def scorer(tiny_context, networks):
    """Keeps what it has counted for all tests."""
    return Scorer(tiny_context, networks)
