"""A running server with the embedded model."""

import pytest
from helpers.serving import serving

from fsrm_lite import SolveReasoner

QUESTION = "Mia has 7 pens. Mia finds 8 more. How many pens does Mia have now?"


@pytest.fixture(scope="session")
def client(rm):
    with serving(rm, reasoner=SolveReasoner(rm)) as running:
        yield running


@pytest.fixture
def question():
    return QUESTION
