# SPDX-License-Identifier: Apache-2.0
"""The SLURM scripts split a data set without losing or repeating anybody.

A stand-in for sbatch runs each array task at once, one after the other; tools/slurm_test.sh runs
the same scripts on a real SLURM.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SLURM = ROOT / "examples" / "slurm"
SBATCH = """#!/bin/sh
for word in "$@"; do case $word in --array=*) array=${word#--array=} ;; esac; script=$word; done
for task in $(seq "${array%-*}" "${array#*-}"); do
    SLURM_ARRAY_TASK_ID=$task sh "$script" >> "$WORK_DIR/calls.txt" || exit 1
done
echo 7
"""


def _submit(tmp_path: Path, participants: int, per_gpu: int) -> list[list[str]]:
    """Words of every call of the app that the arrays make."""
    for index in range(participants):
        (tmp_path / "data" / f"sub-{index:03d}").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "APP": "echo",
        "PER_GPU": str(per_gpu),
    }
    folders = [str(tmp_path / name) for name in ("data", "out", "work")]
    command = ["sh", str(SLURM / "submit.sh"), *folders, "--output-resolution", "0.8"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [shlex.split(line) for line in (tmp_path / "work" / "calls.txt").open()]


@pytest.mark.parametrize(("participants", "per_gpu"), [(1, 20), (7, 3), (6, 3)])
def test_arrays_cover_everybody_once(tmp_path: Path, participants: int, per_gpu: int) -> None:
    calls = _submit(tmp_path, participants, per_gpu)
    expected = [f"sub-{index:03d}" for index in range(participants)]
    for stage in ("preproc", "sr"):
        of_stage = [call for call in calls if f"--stage {stage}" in " ".join(call)]
        labels = [word for call in of_stage for word in call if word.startswith("sub-")]
        assert labels == expected
        assert all(call[-2:] == ["--output-resolution", "0.8"] for call in of_stage)
    assert len([call for call in calls if "sr" in call]) == -(-participants // per_gpu)
    assert calls[-1][2:] == ["group"]


@pytest.mark.parametrize("name", ["preproc", "superres", "report"])
def test_a_container_hears_of_the_card_of_its_job(tmp_path: Path, name: str) -> None:
    app = tmp_path / "app"
    app.write_text("#!/bin/sh\nenv | grep ^APPTAINERENV_\n")
    app.chmod(0o755)
    (tmp_path / "list").write_text("sub-01\n")
    environment = {"PATH": "/usr/bin:/bin", "APP": str(app), "LIST": str(tmp_path / "list")}
    environment |= dict.fromkeys(("BIDS_DIR", "OUTPUT_DIR", "WORK_DIR"), str(tmp_path))
    environment |= {"OPTIONS": "", "PER_GPU": "1", "SLURM_ARRAY_TASK_ID": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "1", "SLURM_CPUS_PER_TASK": "4"}
    script = ["sh", str(SLURM / f"{name}.sbatch")]
    run = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    expected = {"APPTAINERENV_CUDA_VISIBLE_DEVICES=1", "APPTAINERENV_SLURM_CPUS_PER_TASK=4"}
    assert set(run.stdout.split()) == expected


def test_the_scripts_use_options_that_exist() -> None:
    from bids_moediff.settings import Settings

    for path in SLURM.glob("*.sbatch"):
        call = "\n".join(
            line for line in path.read_text().splitlines() if not line.startswith("#")
        )
        for option in re.findall(r"--[a-z-]+", call):
            assert option[2:].replace("-", "_") in Settings.__dataclass_fields__, path.name


def test_the_plugin_file_names_a_plugin_of_nipype() -> None:
    from nipype.pipeline import plugins

    content = yaml.safe_load((SLURM / "plugin.yml").read_text())
    assert hasattr(plugins, f"{content['plugin']}Plugin")


def test_the_babs_file_fits_this_version() -> None:
    """Options that exist, with values they take, and the version of this package."""
    from bids_moediff import __version__
    from bids_moediff.cli.parser import build_parser

    content = yaml.safe_load((ROOT / "examples" / "babs" / "bids_moediff.yaml").read_text())
    # One name only: BABS refuses others where all results go into one archive.
    assert content["zip_foldernames"] == {"bids_moediff": __version__.replace(".", "-")}
    words = ["in", "out", "participant"]
    for option, value in content["bids_app_args"].items():
        placeholder = option == "$SUBJECT_SELECTION_FLAG"
        words += [value, "01"] if placeholder else [option, value]
    options = vars(build_parser().parse_args(words))
    assert options["participant_label"] and options["device"] == "cuda"
    # What a user greps for in the logs must be what the app says.
    sources = "".join(path.read_text() for path in (ROOT / "bids_moediff").rglob("*.py"))
    sources = re.sub(r'"\s*f?"', "", sources)
    for message in content["alert_log_messages"]["stdout"]:
        assert message in sources, message
