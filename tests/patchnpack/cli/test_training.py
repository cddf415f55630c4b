from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from patchnpack.cli.options.run_file import read_run_file
from patchnpack.models import NaViT
from patchnpack.trainer import Classification, load_checkpoint
from tests.patchnpack.cli.runs import CPU, SMALL, ran

Shards = Callable[..., str]


def test_run_toml_reproduces_the_run(shards: Shards, tmp_path: Path, run: Path) -> None:
    losses = torch.load(run, weights_only=True)["state"]["losses"]
    ran("train", "--config", tmp_path / "run" / "run.toml", "-o", tmp_path / "again")
    again = torch.load(tmp_path / "again" / "checkpoint.pt", weights_only=True)["state"]["losses"]
    assert torch.equal(again, losses)
    texts = [(tmp_path / name / "run.toml").read_text() for name in ("run", "again")]
    assert texts[0] == texts[1].replace("/again", "/run")


def test_run_toml_holds_no_credentials(shards: Shards, tmp_path: Path) -> None:
    given = ["--epochs=1", "--storage-options", "secret=hunter2", "-o", tmp_path / "run"]
    ran("train", shards(), *SMALL, "--resolution=native:resize", *given)
    for path in (tmp_path / "run").iterdir():
        assert b"hunter2" not in path.read_bytes()


def test_tensorboard_receives_training_loader_and_validation_scalars(shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--epochs=2", "--tensorboard", "--log-steps=1", "--validation", shards("v.tar"), "-o", out]
    ran("train", shards(), *SMALL, *flags)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for tag in ("loss", "accuracy", "lr", "gradient_norm"):
        assert f"train/{tag}" in tags
    for tag in ("images_per_s", "tokens_per_s", "padding", "wait_s", "bad_images", "cache_hits", "skipped_oversize"):
        assert f"loader/{tag}" in tags
    assert {"validation/loss", "validation/accuracy"} <= tags
    losses = torch.load(out / "checkpoint.pt", weights_only=True)["state"]["losses"]
    assert [event.value for event in events.Scalars("train/loss")] == losses.tolist()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, len(losses) + 1))


def test_missing_tensorboard_raises_with_the_extra(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'patchnpack[tensorboard]'")):
        ran("train", shards(), *SMALL, "--epochs=1", "--tensorboard", "-o", tmp_path / "run")


def test_a_student_learns_from_a_teacher_of_another_patch_size(shards: Shards, tmp_path: Path, run: Path) -> None:
    flags = [*SMALL[:-1], "--patch-size=4", "--resolution=native:crop", "--steps=3", "--seq-len=512"]
    ran("train", shards(), *flags, "--teacher", run, "--temperature=2", "-o", tmp_path / "student")
    student: NaViT = load_checkpoint(tmp_path / "student" / "checkpoint.pt").model
    assert student.config.patch_size == 4
    with pytest.raises(ValueError, match=r"an image has \d+ of its \d+ tokens"):
        ran("train", shards(), *flags, "--teacher", run, "--token-drop=0.5", "-o", tmp_path / "dropped")


def test_init_starts_from_a_checkpoint(shards: Shards, tmp_path: Path, run: Path) -> None:
    rest = ["--seq-len=64", "--patch-size=8", "--device=cpu", "--steps=1", "--lr=1e-12", "--init", run]
    ran("train", shards(), *rest, "-o", tmp_path / "tuned", "--num-classes=3")
    old, new = (load_checkpoint(path).model for path in (run, tmp_path / "tuned" / "checkpoint.pt"))
    assert (new.config.width, new.config.num_classes) == (24, 3)
    torch.testing.assert_close(new.patch_embed.weight, old.patch_embed.weight, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"width is 48, but .* has 24; leave it out, or give other weights"):
        ran("train", shards(), *rest, "--width=48", "-o", tmp_path / "wide")


def test_image_text_training_runs(shards: Shards, tmp_path: Path) -> None:
    flags = ["--text=cls", "--epochs=2", "--validation", shards("v.tar"), "-o", tmp_path / "run"]
    with pytest.raises(ValueError, match=r"member 'cls' holds bytes, not text"):
        ran("train", shards(), *SMALL, *flags)
    import tarfile

    shard = Path(shards("texts.tar"))
    renamed = shard.with_name("renamed.tar")
    with tarfile.open(shard) as old, tarfile.open(renamed, "w") as new:
        for member in old:
            data = old.extractfile(member)
            member.name = member.name.replace(".cls", ".txt")
            new.addfile(member, data)
    flags = ["--text=txt", "--epochs=2", "--validation", str(renamed), "-o", str(tmp_path / "run")]
    assert "accuracy" in ran("train", renamed, *SMALL, *flags)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert checkpoint.model.config.num_classes == 0
    assert checkpoint.state["objective"]["name"] == "Contrastive"
    with pytest.raises(ValueError, match=r"the model has no classes, so it cannot predict any"):
        ran("eval", tmp_path / "run" / "checkpoint.pt", renamed, "-o", tmp_path / "p.parquet", "--label=")
    ran("features", tmp_path / "run" / "checkpoint.pt", renamed, "-o", tmp_path / "absent" / "f.parquet")
    assert (tmp_path / "absent" / "f.parquet").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text=txt", "--mixup=0.2"], r"mixup is 0.2 and text is given, but image-text training has no classes"),
        (["--text=txt", "--num-classes=3"], r"num_classes is 3 and text is given"),
        (["--underlying=32"], r"underlying is 32, but patch_size is 8; underlying needs several patch sizes"),
        (["--resolution=side:16:32"], r"draws sizes, so validation would differ each time; give eval_resolution"),
        (["--augment=9"], r"augment is '9'; it must be COUNT:MAGNITUDE"),
        (["--init=absent.pt"], r"absent\.pt"),
    ],
)
def test_contradicting_options_raise_before_training(
    flags: list[str], message: str, shards: Shards, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ran("train", shards(), *SMALL, "--epochs=1", "--validation", shards("v.tar"), "-o", tmp_path / "run", *flags)
    assert not (tmp_path / "run" / "run.toml").exists()


def test_train_resumes_an_existing_run(shards: Shards, tmp_path: Path, run: Path) -> None:
    content = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])
    printed = ran("train", "--config", tmp_path / "run" / "run.toml", "--resume")
    assert f"loss: {content['loss']:.4g}" in printed
    with pytest.raises(ValueError, match=r"with lr 0.0002, but this run has 0.1"):
        ran("train", "--config", tmp_path / "run" / "run.toml", "--lr=0.1")
    ran("train", "--config", tmp_path / "run" / "run.toml", "--lr=0.1", "--no-resume")
    assert load_checkpoint(run).train_config["lr"] == 0.1


def test_a_finished_run_is_extended_by_more_epochs(shards: Shards, tmp_path: Path, run: Path) -> None:
    steps = load_checkpoint(run).step
    ran("train", "--config", tmp_path / "run" / "run.toml", "--epochs=3")
    extended = load_checkpoint(run)
    assert (extended.step, extended.train_config["epochs"]) == (3 * steps, 3)
    assert [row["epoch"] for row in extended.state["history"]] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"with epochs 3, but this run has 1"):
        ran("train", "--config", tmp_path / "run" / "run.toml", "--epochs=1")


def test_max_grid_and_position_are_flags_stored_in_run_toml(shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ["train", shards(), *SMALL, "--steps=1", "-o", out]
    with pytest.raises(ValueError, match=r"patches per side, .* end at max_grid 3; raise max_grid to at least [4-9]"):
        ran(*common, "--max-grid=3")
    ran(*common, "--max-grid=9")
    assert read_run_file(out / "run.toml")["max_grid"] == 9
    assert load_checkpoint(out / "checkpoint.pt").model.config.max_grid == 9
    ran(*common, "--position=fractional", "--max-grid=3", "-o", tmp_path / "second")
    assert load_checkpoint(tmp_path / "second" / "checkpoint.pt").model.config.position == "fractional"


def test_skipped_steps_are_printed(shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, steps = Classification.outcome, iter((1.0, math.nan, 1.0))

    def poisoned(self: Classification, *inputs: Any) -> Any:
        found = outcome(self, *inputs)
        return found._replace(total=found.total * next(steps)) if torch.is_grad_enabled() else found

    monkeypatch.setattr(Classification, "outcome", poisoned)
    printed = ran("train", shards(), *SMALL, "--steps=3", "-o", tmp_path / "out", "--skip-bad-steps=1")
    assert "skipped steps: 1\n" in printed


def test_a_run_for_timm_is_refused_where_it_could_not_be_exported(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["train", shards(), *SMALL, "--epochs=1", "--for=timm", "-o", tmp_path / "run"]
    with pytest.raises(ValueError, match=r"norm_eps is 1e-05, and that of timm's models is 1e-06"):
        ran(*common)
    with pytest.raises(ValueError, match=r"position is 'absolute' .* which timm's naflexvit does not have"):
        ran(*common, "--model=norm_eps=1e-6")
    with pytest.raises(ValueError, match=r"the format is 'keras'; choose 'timm', 'big_vision' or 'onnx'"):
        ran(*common[:-3], "--for=keras", "-o", tmp_path / "run")
    assert not (tmp_path / "run" / "run.toml").exists()
    ran(*common, "--model=norm_eps=1e-6", "--position=grid")
    exported = tmp_path / "exported" / "model.safetensors"
    printed = ran("export", tmp_path / "run", "-o", exported, "--format=timm")
    assert f"wrote {exported} and {exported.parent / 'config.json'}" in printed
    monkeypatch.setattr("patchnpack.weights.export.to_onnx", lambda model: f"{model.config.width}".encode())
    printed = ran("export", tmp_path / "run", "-o", tmp_path / "new" / "model.onnx", "--format=onnx")
    assert f"wrote {tmp_path / 'new' / 'model.onnx'}" in printed
    assert (tmp_path / "new" / "model.onnx").read_bytes() == b"24"
    with pytest.raises(ValueError, match=r"for onnx it must end in \.onnx"):
        ran("export", tmp_path / "run", "-o", tmp_path / "model.pth", "--format=onnx")
    tables = []
    for number, weights in enumerate((tmp_path / "run", exported)):
        ran("eval", weights, shards("v.tar"), "-o", tmp_path / f"{number}.parquet", "--seq-len=64", *CPU)
        tables.append(pq.read_table(tmp_path / f"{number}.parquet"))
    assert tables[0]["logits"].to_pylist() == tables[1]["logits"].to_pylist()


def test_a_frozen_backbone_stays_and_class_weights_are_part_of_the_run(
    shards: Shards, tmp_path: Path, run: Path
) -> None:
    weights, out = tmp_path / "weights.txt", tmp_path / "tuned"
    weights.write_text("0 1.5\n1 0.5\n")
    common = [
        "train",
        shards(),
        *SMALL[3:],
        "--init",
        run,
        "--epochs=1",
        "--lr=0.1",
        "--resolution=native:resize",
        "-o",
        out,
    ]
    ran(*common, "--freeze=backbone", "--class-weights", weights)
    before, after = (load_checkpoint(path).model.state_dict() for path in (run, out / "checkpoint.pt"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["head.weight", "head.bias"]
    with pytest.raises(ValueError, match=r"the objective's class_weights \(1\.5, 0\.5\), but this run has None"):
        ran(*common, "--freeze=backbone")
    with pytest.raises(ValueError, match=r"freeze is 2, but the model has 1 blocks; give at most 1, or 'backbone'"):
        ran(*common[:-1], tmp_path / "other", "--freeze=2")
    with pytest.raises(ValueError, match=r"freeze is 'head'; give a number of blocks, at least 0, or 'backbone'"):
        ran(*common[:-1], tmp_path / "other", "--freeze=head")
