from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from patchnpack.cli import main as cli
from patchnpack.cli.doctor import diagnose, findings
from patchnpack.cli.main import app
from tests.loaders.index.samples.rows import write_documents

Shards = Callable[..., str]
run = CliRunner().invoke
_SMALL = ["--width", "24", "--depth", "1", "--heads", "2", "--device", "cpu"]


def test_version_matches_the_installed_package() -> None:
    result = run(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"patchnpack {metadata.version('patchnpack')}\n")


def test_doctor_prints_every_finding_within_80_columns() -> None:
    result = run(app, ["doctor"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.output.splitlines())
    words = " ".join(result.output.split())
    for subject, finding in findings(diagnose()):
        assert subject in words
        assert all(word in words for word in finding.split())


def test_doctor_prints_square_brackets_of_extras_unchanged() -> None:
    result = run(app, ["doctor"], env={"COLUMNS": "200"})
    assert diagnose().missing["ray"] == () or "'patchnpack[ray]'" in result.output


def test_doctor_json_holds_the_diagnosis() -> None:
    result = run(app, ["doctor", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["versions"] == diagnose().versions
    assert found["missing"].keys() == diagnose().missing.keys()


@pytest.mark.parametrize(
    ("verb", "flag", "value", "message"),
    [
        ("report", "--seq-len", "1x", "'1x' is not an integer"),
        ("report", "--ranks", "two", "'two' is not an integer"),
        ("train", "--lr", "fast", "'fast' is not a number"),
        ("train", "--num-classes", "1.5", "'1.5' is not an integer"),
    ],
)
def test_value_that_is_not_a_number_is_quoted(verb: str, flag: str, value: str, message: str) -> None:
    result = run(app, [verb, "x.tar", flag, value], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert f"Invalid value for '{flag}': {message}" in result.output


def test_unknown_command_is_named() -> None:
    result = run(app, ["diagnose"])
    assert result.exit_code == 2
    assert "No such command 'diagnose'" in result.output


def test_shard_writes_shards_that_other_commands_read(tmp_path: Path) -> None:
    for i in range(10):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32 + i, 48), (i, 0, 0)).save(path)
    command = ["shard", str(tmp_path / "photos"), "-o", str(tmp_path / "out"), "--validation", "0.2"]
    result = run(app, command)
    assert result.exit_code == 0, result.output
    assert re.search(r"\b8 images\b.*\b2 for validation\b.*\b2 shards\n", result.output)
    assert result.output.endswith("classes.txt: 2 classes: a, b\n")
    assert "(2 already existed)" in run(app, command).output
    found = run(app, ["report", str(tmp_path / "out" / "train-*.tar"), "--seq-len", "64", "--json"])
    assert json.loads(found.output)["images"] == 8


def test_report_counts_images_and_bad_images(shards: Shards) -> None:
    result = run(app, ["report", shards(broken=2), "--seq-len", "64", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert (found["images"], found["bad_images"]) == (22, 2)
    assert run(app, ["report", shards(), "--seq-len", "64"]).output.startswith("source")


def test_show_writes_a_picture(shards: Shards, tmp_path: Path) -> None:
    out = tmp_path / "packs.png"
    result = run(app, ["show", shards(), "--seq-len", "64", "--label", "cls", "--out", str(out)])
    assert result.exit_code == 0, result.output
    with Image.open(out) as picture:
        assert picture.width == 1600


@pytest.mark.parametrize(
    ("arguments", "flag", "name"),
    [
        (["show", "--seq-len", "64"], "-o", "packs.png"),
        (["index"], "-o", "index.parquet"),
        (["report", "--seq-len", "64", "--no-picture"], "--html", "report.html"),
    ],
)
def test_missing_output_folder_is_created(
    arguments: list[str], flag: str, name: str, shards: Shards, tmp_path: Path
) -> None:
    out = tmp_path / "absent" / "too" / name
    result = run(app, [*arguments, shards(), flag, str(out)])
    assert result.exit_code == 0, result.output
    assert out.is_file()


def test_output_folder_is_checked_before_shards_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (["show", "-o"], ["index", "-o"], ["report", "--html"]):
        result = run(app, [*arguments, str(tmp_path / "file" / "out.parquet"), "absent.tar"])
        assert "cannot be written" in str(result.exception)


def test_train_writes_a_checkpoint_and_prints_metrics(shards: Shards, tmp_path: Path) -> None:
    small = [*_SMALL, "--epochs", "1", "--seq-len", "64"]
    result = run(app, ["train", shards(), "--validation", shards("v.tar"), *small, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert "accuracy:" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "absent-{000..001}.tar"], "error: shard 'absent-000.tar' does not exist (2 of the 2 shards in"),
        (["report", "x.tar", "--seq-len", "0"], "error: --seq-len is 0; it must be at least 1"),
        (["report", "x.tar", "--resolution", "huge"], "error: --resolution is 'huge'; it must be native"),
        (
            ["report", "s3://b/x.tar", "--storage-options", "anon"],
            "error: --storage-options has 'anon'; each must be",
        ),
        (["index", "s3://b/x.tar", "--storage-options", "=1"], "error: --storage-options has ''; each must be KEY="),
        (["train", "x.tar"], "error: the budget is not given; give exactly one of --epochs, --steps and --minutes"),
        (["eval", "absent.pt", "x.tar", "-o", "p.csv"], "error: --out is 'p.csv'; it must end in .parquet"),
    ],
)
def test_user_error_is_one_line_without_a_traceback(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["patchnpack", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.run()
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert "Traceback" not in error


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder to requests with the right token."""

    def log_message(self, *_: Any) -> None:
        pass

    def send_head(self) -> Any:
        if self.headers.get("Authorization") != "Bearer word":
            self.send_error(403)
            return None
        return super().send_head()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """The address of the test's folder, served to requests with the right token."""
    handler = functools.partial(_Handler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("verb", ["report", "index", "show", "train"])
def test_storage_options_reach_the_store_from_every_command(
    verb: str, guarded: str, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHNPACK_CACHE", str(tmp_path / "cache"))
    shard, held_out = f"{guarded}/{Path(shards()).name}", f"{guarded}/{Path(shards('v.tar')).name}"
    rest = {
        "report": ["--seq-len", "64"],
        "index": ["--out", str(tmp_path / "index.parquet")],
        "show": ["--seq-len", "64", "--out", str(tmp_path / "packs.png")],
        "train": ["--seq-len", "64", "--out", str(tmp_path / "run"), "--validation", held_out, *_SMALL, "--steps", "1"],
    }[verb]
    refused = run(app, [verb, shard, *rest])
    assert "403 Forbidden" in str(refused.exception)
    for _ in range(2):
        result = run(app, [verb, shard, *rest, "--storage-options", "headers.Authorization=Bearer word"])
        assert result.exit_code == 0, result.output
        shutil.rmtree(
            tmp_path / "cache" / "patchnpack-shards"
        )  # the index stays cached, so the next run fetches only images
        (tmp_path / "cache" / "patchnpack-shards").mkdir()


def test_traceback_flag_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["patchnpack", "--traceback", "report", "absent.tar"])
    with pytest.raises(FileNotFoundError):
        cli.run()


def test_verbose_logs_more_and_quiet_logs_nothing(shards: Shards, tmp_path: Path) -> None:
    def logged(*flags: str) -> str:
        environment = {**os.environ, "PATCHNPACK_CACHE": str(tmp_path / "-".join(["cache", *flags]))}
        start = [sys.executable, "-c", "from patchnpack.cli.main import run; run()", *flags]
        command = [*start, "report", shards(broken=2), "--seq-len", "64"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return str(done.stderr)

    assert "index" in logged("--verbose")
    assert logged("--quiet") == ""


def test_quiet_and_verbose_together_are_refused() -> None:
    result = run(app, ["-q", "-v", "doctor"])
    assert "--quiet and --verbose contradict each other" in str(result.exception)


def test_index_groups_images_by_a_rule(tmp_path: Path) -> None:
    shard = write_documents(tmp_path / "a.tar", {"a": [2, 1], "b": [1], "c": []})
    result = run(app, ["index", shard, "--sample", "members"])
    assert "3 images of 2 samples in 1 shard (1 read now); 0 bad images, 1 sample without an image" in result.output
    result = run(app, ["index", shard, "--sample", "key:(.)", "--image", "p1.jpg"])
    assert "2 images of 2 samples in 1 shard (1 read now)" in result.output


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("member", "--sample is 'member'; did you mean 'members'?"),
        (r"key:x(\d)", r"--sample is 'key:x(\d)', which matches none of the 2 keys"),
        ("key:(.)", "was made with --sample members, and --sample is 'key:(.)': other images belong together; leave"),
    ],
)
@pytest.mark.parametrize("verb", ["report", "show", "pack", "train"])
def test_wrong_rule_of_samples_is_answered_by_every_command(
    verb: str,
    sample: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shard = write_documents(tmp_path / "a.tar", {"a": [2, 1], "b": [1]})
    if "made with" in message:
        run(app, ["index", shard, "--sample", "members", "-o", str(tmp_path / "made.parquet")])
        shard = str(tmp_path / "made.parquet")
    flags = {"report": [], "show": ["-o", str(tmp_path / "a.png")]}.get(verb, ["-o", str(tmp_path / "out")])
    flags += ["--steps", "1"] if verb == "train" else []
    monkeypatch.setattr(sys, "argv", ["patchnpack", verb, shard, *flags, "--image", "p1.jpg", "--sample", sample])
    with pytest.raises(SystemExit):
        cli.run()
    assert message in capsys.readouterr().err
