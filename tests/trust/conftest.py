"""Compiling is nearly all that these tests cost."""

import pytest


@pytest.fixture(autouse=True)
def quickly(quick_compilation):
    del quick_compilation
