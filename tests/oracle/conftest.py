import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # tests is no package: another distribution installs one of that name


def pytest_generate_tests(metafunc):
    if "provider" in metafunc.fixturenames:
        import measure

        metafunc.parametrize("provider", list(measure.PROVIDERS.values()), ids=list(measure.PROVIDERS), scope="session")


@pytest.fixture
def make_batch():
    """`measure.build`, the function that makes a small packed batch."""
    import measure

    return measure.build
