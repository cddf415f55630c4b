"""examples/prepack.sbatch as Slurm runs it, with a stub `patchnpack` that prints its arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "prepack.sbatch"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def _array(folder: Path, tasks: list[int], *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """Run the script once per task of an array, with the variables that Slurm sets."""
    command = folder / "patchnpack"
    command.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n")
    command.chmod(0o755)
    array = {
        "SLURM_ARRAY_TASK_COUNT": str(len(tasks)),
        "SLURM_ARRAY_TASK_MIN": str(min(tasks)),
        "SLURM_ARRAY_TASK_MAX": str(max(tasks)),
    }
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return [
        subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": path, **array, "SLURM_ARRAY_TASK_ID": str(task)},
        )
        for task in tasks
    ]


def test_each_array_task_packs_its_own_share(tmp_path: Path) -> None:
    shards = "shards/train-{000000..000003}.tar"
    found = _array(tmp_path, [0, 1, 2], shards, "--seq-len", "1024")
    assert [run.returncode for run in found] == [0, 0, 0]
    for task, run in enumerate(found):
        words = ["pack", shards, "--seq-len", "1024", "--task-index", str(task), "--num-tasks", "3"]
        assert run.stdout == f"{words}\n"


@pytest.mark.parametrize("tasks", [[1, 2, 3], [0, 2, 4], [5]])
def test_array_that_does_not_start_at_0_or_has_gaps_is_refused(tasks: list[int], tmp_path: Path) -> None:
    for run in _array(tmp_path, tasks, "a.tar"):
        assert (run.returncode, run.stdout) == (2, "")
        assert f"The array is {tasks[0]} to {tasks[-1]} with {len(tasks)} tasks; it must be 0 to n - 1" in run.stderr


def test_without_shards_or_an_array_the_script_prints_its_usage(tmp_path: Path) -> None:
    (run,) = _array(tmp_path, [0])
    assert run.returncode == 2
    assert "sbatch --array=0-63" in run.stderr
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    command = ["bash", str(SCRIPT), "a.tar"]
    alone = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert alone.returncode == 2
    assert "Run it as an array" in alone.stderr
