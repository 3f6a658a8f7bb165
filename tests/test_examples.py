# SPDX-License-Identifier: Apache-2.0
"""The SLURM scripts split a data set without losing or repeating anybody.

A stand-in for sbatch runs each array task at once, one after the other; test_slurm.py runs the
same scripts on a real SLURM where one is installed.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from generated import dataset

ROOT = Path(__file__).resolve().parents[1]
SLURM = ROOT / "examples" / "slurm"
SNAKEFILE = ROOT / "examples" / "snakemake" / "Snakefile"
SBATCH = """#!/bin/sh
array=1-1
for word in "$@"; do
    case $word in --array=*) array=${word#--array=} ;; esac
    script=$submission submission=$word
done
for task in $(seq "${array%-*}" "${array#*-}"); do
    SLURM_ARRAY_TASK_ID=$task sh "$script" "$submission" >> "$CALLS" || exit 1
done
echo 7
"""
# A stand-in for the app: prints its words, each with a separator behind it.
WORDS = r"printf '%s' 'CALL'"


def _programs(folder: Path, limits: str = "MaxArraySize = 1001") -> Path:
    """Folder with the stand-ins for sbatch and scontrol."""
    folder.mkdir(exist_ok=True)
    for name, text in {"sbatch": SBATCH, "scontrol": f"#!/bin/sh\necho '{limits}'\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def _submit(
    folder: Path, names: Sequence[str], *options: str, limits: str = "", **more: str
) -> list[list[str]]:
    """Words of every call of the app that the jobs make."""
    for name in names:
        (folder / "data" / name).mkdir(parents=True)
    programs = _programs(folder / "bin", limits)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "APP": WORDS, **more}
    environment["CALLS"] = str(folder / "calls.txt")
    folders = [str(folder / name) for name in ("data", "out", "work")]
    command = ["sh", str(SLURM / "submit.sh"), *folders, *options]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert {call[0] for call in _calls(folder)} == {folders[0]}
    assert {call[1] for call in _calls(folder)} == {folders[1]}
    return _calls(folder)


def _calls(folder: Path) -> list[list[str]]:
    text = (folder / "calls.txt").read_text()
    return [call.split("\x1f")[:-1] for call in text.split("CALL\x1f")[1:]]


def _labels(calls: Sequence[list[str]], stage: str) -> list[list[str]]:
    """Participants of each task of a stage."""
    return [
        [word for word in call[2:] if word.startswith("sub-")]
        for call in calls
        if call[2] == "participant" and call[call.index("--stage") + 1] == stage
    ]


@pytest.mark.parametrize(("participants", "per_gpu"), [(1, 20), (7, 3), (6, 3)])
def test_arrays_cover_everybody_once(tmp_path: Path, participants: int, per_gpu: int) -> None:
    expected = [f"sub-{index:03d}" for index in range(participants)]
    options = ("--output-resolution", "0.8")
    calls = _submit(tmp_path, expected, *options, PER_GPU=str(per_gpu))
    for stage in ("preproc", "sr", "report"):
        assert [name for task in _labels(calls, stage) for name in task] == expected
    for call in calls[:-1]:
        assert call[call.index("--output-resolution") + 1] == "0.8"
    assert len(_labels(calls, "sr")) == -(-participants // per_gpu)
    assert len(_labels(calls, "preproc")) == participants
    assert calls[-1][2] == "group"


@pytest.mark.parametrize("limits", ["MaxArraySize = 4", "MaxArraySize = 99\nMaxJobCount = 12"])
def test_tasks_grow_where_the_array_would_not_fit(tmp_path: Path, limits: str) -> None:
    expected = [f"sub-{index}" for index in range(7)]
    calls = _submit(tmp_path, expected, limits=limits, PER_GPU="2")
    tasks = [expected[:3], expected[3:6], expected[6:]]
    assert [_labels(calls, stage) for stage in ("preproc", "sr", "report")] == [tasks] * 3


def test_selections_choose_the_tasks(tmp_path: Path) -> None:
    names = ["sub-01", "sub-02", "sub-a1", "sub-b+2"]
    options = ("--participant-label", "sub-a1", "01", "b+2", "--session-label", "1")
    options = (*options, "--exclude-participant-label", "01")
    calls = _submit(tmp_path, names, *options)
    assert _labels(calls, "preproc") == [["sub-a1"], ["sub-b+2"]]
    assert all(call[3:5] == ["--session-label", "1"] for call in calls[:-1])
    # The group is that of the data set, without those who are left out on purpose.
    assert calls[-1][3:5] == ["--exclude-participant-label", "sub-01"]


def test_unfinished_participants_only(tmp_path: Path) -> None:
    (tmp_path / "out" / "logs").mkdir(parents=True)
    (tmp_path / "out" / "logs" / "unfinished.txt").write_text("sub-3\nsub-1\n")
    options = ("--participant-label", "1", "2")
    calls = _submit(tmp_path, ["sub-1", "sub-2", "sub-3"], *options, ONLY_UNFINISHED="1")
    assert _labels(calls, "sr") == [["sub-1"]]


def test_names_that_a_shell_would_read(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s 100% "so" $HOME `x` * & ;'
    folder.mkdir()
    filters = str(folder / "my filter.json")
    calls = _submit(folder, ["sub-1"], "--bids-filter-file", filters, "--modalities", "*")
    assert calls[0][3:7] == ["--bids-filter-file", filters, "--modalities", "*"]
    assert all(call[call.index("-w") + 1] == str(folder / "work") for call in calls)


@pytest.mark.parametrize(
    ("options", "more", "code", "words"),
    [
        (("--participant-label", "1", "7"), {}, 2, "there is no sub-7"),
        (("--participant_label", "7"), {}, 2, "there is no sub-7"),
        (("--participant-label", "--exclude-participant-label", "1"), {}, 2, "no label is given"),
        (("--exclude-participant-label", "1"), {}, 66, "no participant"),
        (("--exclude-participant-label=",), {}, 2, "no label is given"),
        (("--config-file", "settings.toml"), {}, 2, "chooses participants"),
        (("--config-file=absent.toml",), {}, 2, "cannot be read"),
        ((), {"APP": "apptainer run 'my app.sif"}, 2, "my app.sif"),
        (("participant",), {}, 2, "leave out participant"),
        (("--modalities", "T1w", "--dry-run"), {}, 2, "leave out --dry-run"),
        (("--stage=sr",), {}, 2, "leave out --stage"),
        (("-w", "elsewhere"), {}, 2, "leave out -w"),
        (("--config-file", "quoted.toml"), {}, 2, "chooses participants"),
        ((), {"PER_GPU": "0"}, 2, "PER_GPU"),
        ((), {"LIMITS": "MaxArraySize = 0"}, 69, "MaxArraySize is 0"),
        ((), {"LIMITS": "'; exit 1; '"}, 69, "SLURM does not answer"),
    ],
)
def test_a_wrong_call_submits_nothing(
    tmp_path: Path, options: Sequence[str], more: dict[str, str], code: int, words: str
) -> None:
    (tmp_path / "data" / "sub-1").mkdir(parents=True)
    (tmp_path / "settings.toml").write_text('participant_label = ["1"]\n')
    (tmp_path / "quoted.toml").write_text("\t'participant-label' = ['1']\n")
    programs = _programs(tmp_path / "bin", more.get("LIMITS", "MaxArraySize = 1001"))
    environment = {"PATH": f"{programs}:/usr/bin:/bin", **more}
    environment["CALLS"] = str(tmp_path / "calls.txt")
    command = ["sh", str(SLURM / "submit.sh"), "data", "out", "work", *options]
    run = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == code and words in run.stderr
    assert not (tmp_path / "calls.txt").exists()
    assert not list((tmp_path / "out").glob("logs/slurm/*"))


@pytest.mark.parametrize(
    ("fault", "code"), [("exit 3", 3), ("kill -TERM $SUBMIT; sleep 1; echo 7", 143)]
)
def test_what_stops_halfway_leaves_nothing_in_the_queue(
    tmp_path: Path, fault: str, code: int
) -> None:
    """A limit of the account at the second array, or a signal to submit.sh."""
    (tmp_path / "data" / "sub-1").mkdir(parents=True)
    programs, calls = _programs(tmp_path / "bin"), tmp_path / "calls.txt"
    text = f"#!/bin/sh\ncase $* in *afterany*) {fault}; exit ;; esac\necho 5\n"
    (programs / "sbatch").write_text(text)
    (programs / "scancel").write_text(f'#!/bin/sh\necho "$@" > {calls}\n')
    (programs / "scancel").chmod(0o755)
    script = f'export SUBMIT=$$; exec sh "{SLURM / "submit.sh"}" data out work'
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "APP": WORDS}
    run = subprocess.run(["sh", "-c", script], env=environment, cwd=tmp_path, check=False)
    assert run.returncode == code
    assert calls.read_text().split() == ["5", "7"][: 1 if code == 3 else 2]


@pytest.mark.parametrize("wrong", ["option", "output folder"])
def test_what_the_app_would_not_take_submits_nothing(tmp_path: Path, wrong: str) -> None:
    """With the real app: one look at the first participant, its sentence and its exit code."""
    data = dataset(tmp_path / "data", {"sub-1_T1w": b""})
    (tmp_path / "out").mkdir(mode=0o700 if wrong == "option" else 0o300)
    programs = _programs(tmp_path / "bin")
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    environment |= {"CALLS": str(tmp_path / "calls.txt"), "PYTHONPATH": str(ROOT)}
    environment["APP"] = f"{sys.executable} -m bids_moediff.cli.app"
    command = ["sh", str(SLURM / "submit.sh"), str(data), "out", "work", "--output-resolution"]
    command.append("0,7" if wrong == "option" else "0.7")
    if wrong != "option" and os.geteuid() == 0:  # who may read everything
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    run = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    words = "write 0.7" if wrong == "option" else "out cannot be read"
    assert run.returncode == 2 and words in run.stderr
    assert not (tmp_path / "calls.txt").exists()
    assert not list((tmp_path / "out").glob("logs/slurm/*"))


@pytest.mark.parametrize(("code", "more"), [(1, {}), (66, {}), (127, {"CHECK": "0"})])
def test_what_the_check_leaves_to_the_tasks(
    tmp_path: Path, code: int, more: dict[str, str]
) -> None:
    """An image that fails, a participant without one, an app that is on the nodes only."""
    app = tmp_path / "app"
    text = f'[ -n "$SLURM_ARRAY_TASK_ID" ] || exit {code}\nprintf "%s\\037" CALL "$@"\n'
    app.write_text(f"#!/bin/sh\n{text}")
    app.chmod(0o755)
    calls = _submit(tmp_path, ["sub-1"], APP=str(app), **more)
    assert _labels(calls, "sr") == [["sub-1"]]


def test_what_the_calling_shell_has_does_not_reach_the_jobs(tmp_path: Path) -> None:
    """Its CDPATH and, if it is a job itself, its memory. Dangling links (DataLad) get a task."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sub-2").symlink_to("nowhere")
    environment = {"CDPATH": str(tmp_path), "SLURM_MEM_PER_CPU": "99", "ONLY_UNFINISHED": "0"}
    programs = _programs(tmp_path / "bin")
    environment |= {"PATH": f"{programs}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls.txt")}
    environment["APP"] = "echo memory=${SLURM_MEM_PER_CPU:-}"
    command = ["sh", str(SLURM / "submit.sh"), "data", "out", "work"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    words = (tmp_path / "calls.txt").read_text().split()
    assert words[:3] == ["memory=", str(tmp_path / "data"), str(tmp_path / "out")]
    assert words.count("sub-2") == 3


def test_tasks_find_the_app_without_the_path_of_the_shell(tmp_path: Path) -> None:
    """Where SLURM hands on no environment (SBATCH_EXPORT=NONE)."""
    (tmp_path / "data" / "sub-1").mkdir(parents=True)
    programs = _programs(tmp_path / "my bin")
    (programs / "bids_moediff").write_text('#!/bin/sh\necho "$3"\n')
    (programs / "bids_moediff").chmod(0o755)
    bare = SBATCH.replace("SLURM_ARRAY_TASK_ID=", "PATH=/usr/bin:/bin SLURM_ARRAY_TASK_ID=")
    (programs / "sbatch").write_text(bare)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls.txt")}
    command = ["sh", str(SLURM / "submit.sh"), "data", "out", "work"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "calls.txt").read_text().split() == ["participant"] * 3 + ["group"]


def test_a_container_hears_of_the_limits_of_its_job(tmp_path: Path) -> None:
    given = {"CUDA_VISIBLE_DEVICES": "1", "SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_CPU": "99"}
    show = tmp_path / "show"
    show.write_text('#!/bin/sh\nenv | grep ^APPTAINERENV_ >> "$SEEN"\n')
    show.chmod(0o755)
    (tmp_path / "data" / "sub-1").mkdir(parents=True)
    programs = _programs(tmp_path / "bin")
    words = " ".join(f"{name}={value}" for name, value in given.items())
    (programs / "sbatch").write_text(SBATCH.replace("\n", f"\nexport {words}\n", 1))
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "APP": str(show)}
    environment |= {"CALLS": os.devnull, "SEEN": str(tmp_path / "seen.txt")}
    command = ["sh", str(SLURM / "submit.sh"), "data", "out", "work"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    seen = (tmp_path / "seen.txt").read_text().split()
    assert set(seen) == {f"APPTAINERENV_{name}={value}" for name, value in given.items()}
    assert len(seen) == 4 * len(given)


def test_snakemake_runs_one_participant_a_task(tmp_path: Path) -> None:
    """A failed image (exit code 1) or none (66) stops neither the others nor the group; 2 does."""
    snakemake = shutil.which("snakemake")
    if snakemake is None:
        pytest.skip("needs Snakemake: pip install snakemake")
    for name in ("sub-1", "sub-2", "sub-bad", "sub-none", "sub-1_old"):
        (tmp_path / "my data" / name).mkdir(parents=True)
    app = tmp_path / "app"
    app.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls.txt\n'
        "case $* in *sub-bad*) exit ${CODE:-1} ;; *sub-none*) exit 66 ;; esac\n"
    )
    app.chmod(0o755)
    command = [snakemake, "-s", str(SNAKEFILE), "--cores", "1", "-q", "--keep-going", "--config"]
    command += [f"bids={tmp_path}/my data", f"out={tmp_path}/out", f"app={app}"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    wrong = subprocess.run(command, env=environment | {"CODE": "2"}, cwd=tmp_path, check=False)
    assert wrong.returncode == 1
    (tmp_path / "calls.txt").unlink()
    shutil.rmtree(tmp_path / "out")
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    labels = sorted(label for call in calls for label in re.findall("sub-[a-z0-9]+", call))
    assert labels == ["sub-1", "sub-2", "sub-bad", "sub-none"]
    assert calls[-1].endswith("/my data " + f"{tmp_path}/out group")


def test_the_scripts_use_options_that_exist() -> None:
    from bids_moediff.settings import Settings

    for path in (*SLURM.glob("*.sbatch"), SLURM / "task.sh", SNAKEFILE):
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


def test_the_neurodesk_recipe_fits_this_version() -> None:
    from importlib.metadata import entry_points

    from bids_moediff import __version__

    content = yaml.safe_load((ROOT / "examples" / "neurodesk" / "build.yaml").read_text())
    assert content["version"] == __version__
    installed = {entry.name for entry in entry_points(group="console_scripts")}
    named = re.findall(r"^ *(bids_moediff[\w-]*) ", content["readme"], re.M)
    assert set(named) <= set(content["deploy"]["bins"]) <= installed
