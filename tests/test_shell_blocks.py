"""Every shell block of README.md, CONTRIBUTING.md and docs/ runs as a reader would paste it, on a small data set.

The blocks of a page run in order in one folder, in bash with `set -eu -o pipefail`. They find only the commands of the
fixture `commands`, so a block with another command fails. In blocks that show output, only the commands run, which
start with `$ `. test_start_page.py runs the blocks of docs/start.md.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from patchnpack.cli.main import app
from tests.timm_folders import write_timm_folders

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SHELL, OTHER = {"sh", "bash", "shell"}, {"", "python"}
PROGRAMS = "bash|git|make|patchnpack|pip|python|sbatch|sh|tar|torchrun"

# Substitutions (pattern, replacement) that make blocks small. Some block uses each of them.
SMALLER = [
    (r"\{000000\.\.0\d+\}", "{000000..000001}"),
    (r"train-000017\.tar KEY\.jpg", "train-000000.tar train-00000.jpg"),
    (r"coco_val2017\.csv", "sizes.csv"),
    (r"-o /(data|shared)/", r"-o \1/"),
    (r"--epochs 20\b", "--epochs 1 --width 24 --depth 1"),
    (r"--minutes 18\b", "--minutes 0.01 --width 24 --depth 1"),
    (r"--nproc-per-node 8\b", "--nproc-per-node 2"),
    (r"--array=0-63\b", "--array=0-1"),
    (r"--num-tasks 64\b", "--num-tasks 2"),
    (r"examples/segment\.py", "examples/segment.py --images 6"),
    (r"examples/cka\.py", "examples/cka.py --images 6 --epochs 1"),
    (r"examples/clips\.py", "examples/clips.py --clips 12 --epochs 1"),
    (r"examples/dino\.py --seeds 1 2 3", "examples/dino.py --pictures 24 --epochs 1"),
    (r"examples/native_vs_square\.py", "examples/native_vs_square.py --epochs 1 --seeds 1 --width 24 --depth 1"),
    # tests/benchmarks/test_probe.py runs the script; the shapes have too few classes to split.
    (r"benchmarks/probe\.py .*", "benchmarks/probe.py --help | grep -e --seeds"),
    # tests/benchmarks/test_model.py runs the script, which takes minutes.
    (r"benchmarks/model\.py --shards .*", "benchmarks/model.py --help | grep -e --shards"),
]

SBATCH = """
import os, re, subprocess, sys

given = [word for word in sys.argv[1:] if word.startswith("--")]
script, *words = sys.argv[1 + sys.argv[1:].index(next(word for word in sys.argv[1:] if not word.startswith("--"))):]
directives = re.findall(r"^#SBATCH (.*)$", open(script).read(), re.MULTILINE)
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", " ".join(directives + given)).groups())
array = {"COUNT": last - first + 1, "MIN": first, "MAX": last}
environment = {**os.environ, **{f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}}
for task in range(first, last + 1):
    subprocess.run(["bash", script, *words], check=True, env={**environment, "SLURM_ARRAY_TASK_ID": str(task)})
"""

PIP = r"""
import re, sys, tomllib
from packaging.requirements import Requirement

project = tomllib.load(open(sys.argv[1], "rb"))["project"]
assert sys.argv[2] == "install", sys.argv
# In a checkout the project is "."; a requirement has a name.
for word in (Requirement(re.sub(r"^\.", project["name"], word)) for word in sys.argv[3:]):
    assert word.name == project["name"], f"{word} is not this project"
    assert word.extras <= set(project["optional-dependencies"]), f"{word} has no such extra"
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the number of its first line, and its text without indentation."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        lines = [line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True)]
        found.append(Block(page, text.count("\n", 0, match.start(3)) + 1, match[2], "".join(lines)))
    return found


def shell_blocks(page: Path) -> list[Block]:
    """The shell blocks; blocks that show output are reduced to their commands."""
    found = blocks(page)
    shown = {
        block: "".join(re.findall(r"^\$ (.*\n)", block.text, re.MULTILINE)) for block in found if not block.language
    }
    return [
        replace(block, text=shown.get(block, block.text))
        for block in found
        if block.language in SHELL or shown.get(block)
    ]


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text


def script_file(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the only commands that blocks may use.

    `patchnpack`, `python` and `torchrun` are real. `sbatch` runs the tasks of an array in order. `make` only prints its
    commands. `pip` checks that it is asked to install this project with existing extras.
    """
    folder = tmp_path_factory.mktemp("bin")
    warm, address = ROOT / "tests" / "warm.py", tmp_path_factory.mktemp("warm") / "socket"
    for name in ("bash", "cat", "cmp", "grep", "sh", "tar"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name in ("patchnpack", "python"):
        script_file(folder / name, f'#!/bin/sh\nexec {sys.executable} -I -S {warm} run {address} {name} "$@"\n')
    script_file(folder / "torchrun", f'#!/bin/sh\nexec {sys.executable} -P -m torch.distributed.run "$@"\n')
    script_file(folder / "sbatch", f"#!{sys.executable}\n{SBATCH}")
    (folder / ".pip.py").write_text(PIP)
    script_file(folder / "pip", f'#!/bin/sh\nexec {sys.executable} -P {folder}/.pip.py {ROOT}/pyproject.toml "$@"\n')
    make = f'PATH={os.environ["PATH"]} exec make -n -C {ROOT} "$@"'
    script_file(folder / "make", f"#!/bin/sh\n{make if shutil.which('make') else ':'}\n")
    server = subprocess.Popen(
        [sys.executable, "-P", str(warm), "serve", str(address)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield folder
        server.terminate()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ with two training shards and one validation shard, and photos/ with one folder per class."""
    spec = importlib.util.spec_from_file_location("shapes", ROOT / "examples" / "shapes.py")
    assert spec is not None
    assert spec.loader is not None
    shapes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shapes)
    folder = tmp_path_factory.mktemp("data")
    shapes.draw_shapes(folder / "shards", 12, 6, images_per_shard=6)
    shapes.draw_files(folder / "photos", 12)
    return folder


@pytest.fixture(scope="module")
def bucket(data: Path) -> Iterator[dict[str, str]]:
    """Environment variables with which s3://bucket holds the shards."""
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    boto3 = pytest.importorskip("boto3")
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    client.create_bucket(Bucket="bucket")
    for shard in (data / "shards").glob("*.tar"):
        client.upload_file(str(shard), "bucket", shard.name)
    client.close()
    yield environment
    server.stop()


def lay_out(folder: Path, data: Path, page: str) -> None:
    """Create what pages assume: .venv/, photos/, documents/, scripts, sizes.csv, shards in . and clothing/."""
    write_timm_folders(folder)
    (folder / "sizes.csv").write_text("width,height\n" + "640,480\n500,375\n" * 50)
    shutil.copytree(data / "photos", folder / "photos")
    for name in (".", "clothing", *([] if " -o shards" in page else ["shards"])):
        shutil.copytree(data / "shards", folder / name, dirs_exist_ok=True)
    for name in ("docs/images", "data", "shared", ".venv/bin"):
        (folder / name).mkdir(parents=True)
    for document, pages in (("invoice", 2), ("letter", 4), ("report", 3)):  # as in docs/samples.md
        for number in range(1, pages + 1):
            path = folder / "documents" / f"{document}_{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (150, 200), (60 * number, 99, 99)).save(path)
    (folder / ".venv/bin/activate").touch()  # `commands` is already on PATH
    for name in ("benchmarks", "examples"):
        (folder / name).symlink_to(ROOT / name)


def results(text: str) -> list[str]:
    """The local files that a block names as output."""
    options = re.findall(r"(?:-o|--out|--html|--picture|--plot|>) (\S+)", re.sub(r"#.*", "", text))
    return [path for path in options if "://" not in path]


@pytest.mark.parametrize("page", [page for page in PAGES if shell_blocks(page)], ids=lambda page: page.name)
def test_commands_on_the_page_run(
    page: Path, commands: Path, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = shell_blocks(page)
    lay_out(tmp_path, data, "".join(block.text for block in found))
    environment = {**os.environ, "PATH": str(commands), "OMP_NUM_THREADS": "1"}
    if any("s3://" in block.text for block in found):
        environment |= request.getfixturevalue("bucket")
    for block in found:
        text = smaller(block.text)
        if text.startswith("#!"):
            (tmp_path / "job.sh").write_text(text)
            text = "sbatch job.sh"
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", text],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        print(f"{block}\n{text}\n{done.stdout}")
        assert done.returncode == 0, f"{block}\n{text}\n{done.stdout}"
        missing = [path for path in results(text) if not (tmp_path / path).exists()]
        assert not missing, f"{block}\n{text}\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_in_a_block_that_runs(page: Path) -> None:
    shown = {*SHELL, *OTHER, *(["console"] if page.name == "start.md" else [])}
    assert [str(block) for block in blocks(page) if block.language not in shown] == []
    command = re.compile(rf"^\s*([A-Z_]+=\S+ )*({PROGRAMS}) ", re.MULTILINE)
    assert [str(block) for block in blocks(page) if block.language in OTHER and command.search(block.text)] == []
    assert page.read_text("utf-8").count("```") == 2 * len(blocks(page))


def test_every_substitution_is_used() -> None:
    text = "".join(block.text for page in PAGES for block in shell_blocks(page))
    assert [pattern for pattern, _ in SMALLER if not re.search(pattern, text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist_with_their_options(page: Path) -> None:
    verbs: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known = {
        name: {"--help", *(o for p in verb.params for o in (*p.opts, *p.secondary_opts))}
        for name, verb in verbs.items()
    }
    text = FENCE.sub("", page.read_text("utf-8"))
    for span in re.findall(r"`patchnpack ([^`]+)`", text):
        words = span.split()
        if words[0].startswith("-"):
            continue
        assert words[0] in known, f"{page.name}: patchnpack {span}"
        options = [word.split("=")[0].rstrip(",") for word in words if re.match(r"--?[a-z]", word)]
        assert [option for option in options if option not in known[words[0]]] == [], f"{page.name}: patchnpack {span}"
