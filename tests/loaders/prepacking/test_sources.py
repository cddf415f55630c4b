"""Sources that cannot be packed are refused with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchnpack.loaders import Job, Mixture
from tests.loaders.prepacking.dataset_kinds import PHOTOS, pack
from tests.loaders.prepacking.folders import PACKING


def test_a_mixture_is_no_source(tmp_path: Path) -> None:
    mixture = Mixture({"a": (PHOTOS.hugging_face(), 1)})
    with pytest.raises(ValueError, match=r"source is a Mixture of 'a'. A mixture repeats .*ConcatDataset"):
        Job(source=mixture, out=str(tmp_path / "out"), packing=PACKING).run()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_packed_folder_is_no_source(tmp_path: Path) -> None:
    pack(PHOTOS.hugging_face(), tmp_path / "out", {})
    with pytest.raises(ValueError, match=r"source is the packed folder '.*out'; .* patchnpack unpack"):
        Job(source=str(tmp_path / "out"), out=str(tmp_path / "other"), packing=PACKING)
