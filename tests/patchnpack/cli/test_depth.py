"""Values of each type and number of bands, the whole way: stats, train, eval, features, pack, verify and unpack."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.images import read_tar, write_tar
from tests.loaders.imaging import arrays
from tests.patchnpack.cli.runs import CPU, SMALL, ran

QUICK = [("uint8", 13), ("uint16", 1), ("int16", 5), ("float32", 2)]
KINDS = [
    pytest.param(dtype, channels, marks=() if (dtype, channels) in QUICK else pytest.mark.soak)
    for dtype in arrays.DTYPES
    for channels in (1, 2, 5, 13)
]


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_values_go_the_whole_way_from_training_to_unpacked_files(dtype: str, channels: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(channels)
    sizes = rng.integers(12, 30, (8, 2)).tolist()
    images = {f"{i}": arrays.values(dtype, channels, height, width, i) for i, (height, width) in enumerate(sizes)}
    members = [(f"{key}.npy", arrays.npy(array)) for key, array in images.items()]
    members += [(f"{key}.cls", str(i % 2).encode()) for i, key in enumerate(images)]
    shard, run = write_tar(tmp_path / "a.tar", sorted(members)), tmp_path / "run"
    kind = ["--image=npy", f"--channels={channels}", f"--dtype={dtype}"]
    found = re.search(r"--model (mean=\S+) --model (std=\S+)", ran("stats", shard, *kind))
    assert found is not None
    ran("train", shard, *SMALL, *kind, "--epochs=1", "--model", found[1], "--model", found[2], "-o", run)

    def table(command: str, source: object) -> dict[str, np.ndarray]:
        """The output for each key; `run.toml` says how the images are read."""
        out = tmp_path / "out.parquet"
        ran(command, run / "checkpoint.pt", source, *CPU, "-o", out)
        rows = pq.read_table(out).to_pylist()
        return {row["key"]: np.array(row["logits" if command == "eval" else "feature"]) for row in rows}

    expected = {command: table(command, shard) for command in ("eval", "features")}
    assert expected["eval"].keys() == expected["features"].keys() == images.keys()
    assert all(np.isfinite(values).all() for values in expected["features"].values())
    for store in ("images", "patches"):
        packed, unpacked = tmp_path / f"packed-{store}", tmp_path / f"unpacked-{store}"
        packing = ["--seq-len=64", "--patch-size=8", "--label=cls", f"--store={store}", "--workers=1"]
        ran("pack", shard, *kind, *packing, "-o", packed)
        ran("verify", packed)
        for command, values in expected.items():
            again = table(command, packed)
            assert again.keys() == values.keys()
            assert all(np.allclose(again[key], values[key], atol=1e-4) for key in values)
        ran("unpack", packed, "-o", unpacked)
        files = dict(read_tar(unpacked / "images-000000.tar"))
        assert sum(name.endswith(".cls") for name in files) == 8
        for key, array in images.items():
            if store == "images":
                assert files[f"{key}.npy"] == dict(members)[f"{key}.npy"]
                continue
            if (dtype, channels) == ("uint8", 1):
                pixels = np.asarray(Image.open(io.BytesIO(files[f"{key}.png"])))[..., None]
            else:
                pixels = np.load(io.BytesIO(files[f"{key}.npy"]))
            height, width, _ = array.shape
            assert pixels.dtype == array.dtype
            assert np.array_equal(pixels[:height, :width], array)
            assert not pixels[height:].any()
        reread = ran(
            "report",
            unpacked / "images-000000.tar",
            "--seq-len=64",
            "--patch-size=8",
            *kind,
            "--json",
            *(["--image=png"] if store == "patches" and (dtype, channels) == ("uint8", 1) else []),
        )
        assert '"images": 8' in reread
