# SPDX-License-Identifier: Apache-2.0
"""Places that clusters put a job in: all give the bytes of a run on a plain machine.

The mounts are real and made in a namespace of their own: an input that cannot be written, an
output on another file system, a /tmp of 64 MB, no network, and a HOME that is unset or read-only.
In the input the content of other participants was never fetched, and one session of two is asked
for.
"""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from conftest import ROOT
from generated import dataset, untrained_model

# In its own mount namespace: what lies in /tmp and is needed is bound back to where it was.
MOUNTS = """
mount --make-rprivate /
mount --rbind /tmp /mnt
mount -t tmpfs -o size=64m,mode=1777 hard /tmp
for needed in $NEEDED; do
    case $needed in
        /tmp/*) mkdir -p "$needed" && mount --rbind "/mnt${needed#/tmp}" "$needed" ;;
    esac
done
umount -l /mnt
mount --bind "$STUDY/bids" "$STUDY/bids" && mount -o remount,bind,ro "$STUDY/bids"
mkdir -p "$STUDY/out" "$STUDY/home"
mount -t tmpfs -o size=200m hard "$STUDY/out"
mount -t tmpfs -o ro hard "$STUDY/home"
touch "$STUDY/bids/x" 2> /dev/null && { echo "the input can be written"; exit 99; }
touch "$STUDY/home/x" 2> /dev/null && { echo "HOME can be written"; exit 99; }
[ "$(stat -c %d "$STUDY/out")" != "$(stat -c %d "$STUDY")" ] || { echo "same device"; exit 99; }
code=0
"$@" || code=$?
cp -r "$STUDY/out" "$STUDY/$NAME"
exit $code
"""
UNSHARE = ["unshare", "--mount", "--net", *([] if os.getuid() == 0 else ["--map-root-user"])]


@dataclass(frozen=True)
class Study:
    folder: Path
    plain: Path  # outputs of a run on a plain machine, input of one participant and session

    def command(self, bids: str, output: str, *more: str) -> list[str]:
        app = [sys.executable, "-m", "bids_moediff.cli.app"]
        places = [str(self.folder / bids), str(self.folder / output), "participant"]
        options = ["--weights", str(self.folder / "model"), "--output-resolution", "3"]
        return [*app, *places, *options, "--skip-bias-correction", "--nprocs", "1", *more]


def comparison() -> ModuleType:
    path = ROOT / "tools" / "compare_outputs.py"
    specification = importlib.util.spec_from_file_location("compare_outputs", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def environment(**more: str) -> dict[str, str]:
    unwanted = {"HOME", "MPLCONFIGDIR", "TEMPLATEFLOW_HOME", "NIPYPE_CONFIG_DIR", "TMPDIR"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("places")
    untrained_model(folder / "model")
    dataset(folder / "fetched", {"sub-01_ses-a_T1w": 1})
    dataset(folder / "bids", {f"sub-01_ses-{label}_T1w": n for n, label in enumerate("ba")})
    for label in ("02", "03"):
        anat = folder / "bids" / f"sub-{label}" / "ses-a" / "anat"
        anat.mkdir(parents=True)
        for name in (f"sub-{label}_ses-a_T1w.nii.gz", f"sub-{label}_ses-a_T1w.json"):
            (anat / name).symlink_to(f"../../../.git/annex/objects/{name}/{name}")
    study = Study(folder, folder / "plain")
    command = study.command("fetched", "plain")
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return study


def mounts_can_be_made() -> bool:
    probe = subprocess.run([*UNSHARE, "mount", "--make-rprivate", "/"], capture_output=True)
    return probe.returncode == 0


def run_app(
    study: Study, name: str, *only: str, hard: bool, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the app, behind the mounts if `hard`; its outputs are in the folder of that name."""
    words = study.command("bids", "out" if hard else name, "--session-label", "a", *only)
    if hard:
        words = [*UNSHARE, "sh", "-eu", "-c", MOUNTS, "sh", *words]
        needed = f"{study.folder} {ROOT} {sys.prefix} {sys.base_prefix}"
        more |= {"STUDY": str(study.folder), "NAME": name, "NEEDED": needed}
    run = subprocess.run(
        words, env=environment(**more), capture_output=True, text=True, check=False
    )
    assert "Traceback" not in run.stderr
    return run


def test_hard_places_give_the_same_bytes(study: Study) -> None:
    """HOME is unset."""
    if not mounts_can_be_made():
        pytest.skip("needs mount namespaces: run as root, or allow user namespaces")
    run = run_app(study, "unset", "--participant-label", "01", hard=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert comparison().differences(study.plain, study.folder / "unset") == []


def test_content_that_was_not_fetched_fails_its_own_image_only(study: Study) -> None:
    """Asked for by name, such a participant fails with the command that fetches it.

    The other one has the bytes of the plain machine, with a HOME that is read-only.
    """
    labels, home = ("--participant-label", "01", "02"), str(study.folder / "home")
    run = run_app(study, "partly", *labels, hard=mounts_can_be_made(), HOME=home)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 of 2 images done" in run.stderr
    assert "datalad get" in run.stderr
    lines = comparison().differences(study.plain, study.folder / "partly")
    assert lines == [f"only in {study.folder / 'partly'}: sub-02.html"]
