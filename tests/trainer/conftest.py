"""The batches and the model of the tests of `models`."""

from tests.models.conftest import _one_thread, build, config, draw, pack

__all__ = ["_one_thread", "build", "config", "draw", "pack"]
