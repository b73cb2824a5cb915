"""Nearly all that these tests cost is compilation."""

import pytest


@pytest.fixture(autouse=True)
def quickly(quick_compilation):
    del quick_compilation
