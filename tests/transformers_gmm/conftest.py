"""Nearly all that these tests cost is compilation."""

import pytest

# Compiled without most optimisations its gradients are NaN. Operation by operation, with every
# intermediate value looked at, they are finite: that is the compiler's doing.
_FULLY_COMPILED = {"test_gradients_are_finite_where_readings_are_missing_or_linear"}


@pytest.fixture(autouse=True)
def quickly(request):
    if request.node.originalname not in _FULLY_COMPILED:
        request.getfixturevalue("quick_compilation")
