from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchnpack.loaders import scan
from patchnpack.loaders.prepacking.job import Job
from patchnpack.loaders.prepacking.verify import verify
from patchnpack.packer import Packing

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)


@pytest.fixture(params=["images", "patches"])
def packed(request: pytest.FixtureRequest, drawn: Any, tmp_path: Path) -> Path:
    index = scan(drawn.shards)
    Job(source=index, out=str(tmp_path / "out"), packing=PACKING, store=request.param, part_packs=4).run()
    return tmp_path / "out"


def test_intact_packs_have_no_problem(packed: Path) -> None:
    seen: list[tuple[int, int]] = []
    verdict = verify(packed, progress=lambda done, total: seen.append((done, total)))
    assert verdict.problems == []
    files = list(packed.rglob("*.arrow"))
    assert verdict.files == len(files) == len(seen)
    assert seen[-1] == (verdict.nbytes, verdict.nbytes) == (sum(path.stat().st_size for path in files),) * 2


def test_one_changed_bit_anywhere_is_found(packed: Path) -> None:
    for path in sorted(packed.rglob("*.arrow")):
        data = path.read_bytes()
        for at in (0, len(data) // 3, len(data) - 1):
            path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            problems = verify(packed).problems
            assert len(problems) == 1
            name = path.relative_to(packed)
            assert problems[0] == f"{name} does not have the bytes that were written: its digest differs"
        path.write_bytes(data)
    assert verify(packed).problems == []


def test_missing_short_and_stray_files_are_found(packed: Path) -> None:
    parts = sorted((packed / "parts").iterdir())
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-8])
    (packed / "parts" / "mine.arrow").write_bytes(b"")
    markers = sorted((packed / "done").iterdir())
    markers[0].unlink()
    markers[2].write_bytes(b"{")
    (packed / "recipe.json").write_bytes(b"{}")
    size = parts[1].stat().st_size
    assert set(verify(packed).problems) == {
        f"parts/{parts[0].name} is not there",
        f"parts/{parts[1].name} has {size} bytes, and should have {size + 8}",
        f"the marker of parts/{parts[2].name} does not say what the manifest says",
        "parts/mine.arrow is in no manifest",
        "recipe.json is not the manifest's",
    }


def test_counts_that_disagree_are_found(packed: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_bytes())
    manifest["packs"][0][0] += 1
    (packed / "manifest.json").write_text(json.dumps(manifest))
    problems = verify(packed).problems
    packs = manifest["packs"][0][0]
    assert f"plans/e0000-s000.arrow has {packs - 1} packs, and should have {packs}" in problems
    assert f"the parts of stream 0 of epoch 0 hold {packs - 1} packs of {packs}" in problems


def test_unfinished_packs_cannot_be_verified(packed: Path, tmp_path: Path) -> None:
    (packed / "manifest.json").unlink()
    with pytest.raises(ValueError, match="are not finished"):
        verify(packed)
    with pytest.raises(FileNotFoundError, match=r"holds no packs; make them with: patchnpack pack SHARDS -o"):
        verify(tmp_path / "nothing")
