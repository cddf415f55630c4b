"""The example of DINO: its loss, its batches of views, and its table."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchnpack import PackedImageLoader, Packing, Views

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def dino(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "shapes", raising=False)
    spec = importlib.util.spec_from_file_location("dino", EXAMPLES / "dino.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("shapes", None)  # other tests expect larger images


def test_the_loss_equals_a_plain_loop_over_pairs_of_different_views(dino) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(3, 10, 7, generator=generator), torch.randn(3, 2, 7, generator=generator).softmax(-1)
    each = [
        -(teacher[s, g] * student[s, v].log_softmax(-1)).sum()
        for s in range(3)
        for g in range(2)
        for v in range(10)
        if g != v
    ]
    torch.testing.assert_close(dino.dino_loss(student, teacher), torch.stack(each).mean())


def test_the_teacher_sees_the_global_views_of_each_picture(dino, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dino.shapes.draw_shapes(tmp_path, 12, 6)
    packing = Packing(seq_len=512, max_images=160, views=Views((2, dino.LARGE), (8, dino.SMALL)))
    loader = PackedImageLoader(
        f"{tmp_path}/train-*.tar", packing, batch_size=2, shuffle=True, transform=dino.recolour, seed=3
    )
    network, pictures = dino.Network().eval(), 0
    for batch in loader:
        views = batch.select(batch.frames < dino.GLOBALS)
        with torch.no_grad():
            student, teacher = network(batch).unflatten(0, (-1, dino.V)), network(views).unflatten(0, (-1, 2))
        torch.testing.assert_close(teacher, student[:, :2], atol=1e-4, rtol=1e-4)
        pictures += batch.num_samples
        for sample in batch.images_by_sample():
            assert [image.frame for image in sample.images] == list(range(dino.V))
            assert all(len(image.coords) <= (64 if image.frame < 2 else 16) for image in sample.images)
    assert pictures == 12


def test_recolour_keeps_shape_and_dtype(dino) -> None:  # type: ignore[no-untyped-def]
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    found = dino.recolour(image, np.random.default_rng(1))
    assert (found.shape, found.dtype) == (image.shape, image.dtype)
    assert not np.array_equal(found, image)


def test_script_prints_its_table_and_writes_its_picture(tmp_path: Path) -> None:
    picture = tmp_path / "dino.png"
    script = [sys.executable, str(EXAMPLES / "dino.py"), "--images", "24", "--epochs", "2", "--picture", str(picture)]
    lines = subprocess.run(script, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout.splitlines()
    assert lines[-2] == "seed   random network   DINO   accuracy of 10 nearest neighbours"
    seed, *accuracies = lines[-1].split()
    assert (seed, len(accuracies)) == ("0", 2)
    assert all(0 <= float(value) <= 1 for value in accuracies)
    assert Image.open(picture).width == 1200


def test_script_compares_the_speed_of_one_loader_with_that_of_ten(dino, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dino.shapes.draw_shapes(tmp_path, 12, 6)
    script = [sys.executable, str(EXAMPLES / "dino.py"), "--speed", f"{tmp_path}/train-*.tar"]
    lines = subprocess.run(script, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout.splitlines()
    patterns = (r"one loader of ten views: \d+ crops .*", r"ten loaders of one view: \d+ crops .*", r"ratio: [\d.]+")
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
