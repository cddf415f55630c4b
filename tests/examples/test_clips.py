"""The example of clips: only the order of frames gives the class, and a model with time learns it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders import open_index

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

spec = importlib.util.spec_from_file_location("clips", EXAMPLES / "clips.py")
assert spec is not None
assert spec.loader is not None
clips = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clips)


@pytest.mark.parametrize("seed", range(20))
def test_a_shrinking_clip_is_a_growing_one_reversed_and_its_disc_grows(seed: int) -> None:
    growing, shrinking = (clips.draw_clip(label, np.random.default_rng(seed)) for label in (0, 1))
    np.testing.assert_array_equal(growing, shrinking[::-1])
    light = growing.mean((1, 2, 3))
    assert (np.diff(light) > -0.5).all()  # noise alone changes a mean by less
    assert light[-1] > light[0] + 5
    assert 4 <= len(growing) <= 6
    assert set(growing.shape[1:3]) <= {32, 48, 64}


def test_a_shard_holds_each_clip_as_one_sample_with_its_frames_in_order(tmp_path: Path) -> None:
    clips.draw_clips(tmp_path / "train-%06d.tar", 6, 0)
    index = open_index(f"{tmp_path}/train-*.tar", sample="members")
    assert index.samples is not None
    assert len(index.samples) == 6
    names = [index.name_of(row) for row in range(len(index))]
    starts = index.samples.starts.tolist()
    for a, b in itertools.pairwise(starts):
        assert [name.split(".", 1)[1] for name in names[a:b]] == [f"p{f}.png" for f in range(b - a)]


def test_time_reaches_what_a_set_of_frames_cannot(tmp_path: Path) -> None:
    picture = tmp_path / "clips.png"
    options = ["--clips", "240", "--epochs", "8", "--times", "none", "rope", "--picture", str(picture)]
    script = [sys.executable, str(EXAMPLES / "clips.py"), *options]
    lines = subprocess.run(script, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout.splitlines()
    assert lines[0].endswith("accuracy on 120 held-out clips")
    accuracies = {line.split()[0]: float(line.split()[1]) for line in lines if re.match(r"(none|rope) ", line)}
    assert set(accuracies) == {"none", "rope"}
    assert abs(accuracies["none"] - 0.5) < 0.2
    assert accuracies["rope"] > 0.9
    with Image.open(picture) as image:
        assert image.width == 1600
