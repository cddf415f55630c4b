"""The batches of the tests of `models`, for what works on a whole batch."""

from tests.models.conftest import draw, pack

__all__ = ["draw", "pack"]
