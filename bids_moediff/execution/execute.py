# SPDX-License-Identifier: Apache-2.0
"""Run a graph under Nipype, with its logs beside the derivatives."""

import logging
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from nipype import config
from nipype import logging as nipype_logging
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.bids.dataset import write_citation
from bids_moediff.bids.image import Participant
from bids_moediff.errors import GraphError
from bids_moediff.runtime.resources import Limits
from bids_moediff.runtime.sink import write_text
from bids_moediff.runtime.text import visible
from bids_moediff.settings import Settings
from bids_moediff.workflows.folder_names import WORKFLOW_NAME, participant_workflow_name
from bids_moediff.workflows.participant import RunPlan, run_file

from .outcome import crash_sentences
from .plugin_choice import choose_plugin
from .progress import PREPARING, REPORTING, ProgressWatcher
from .work_folder import participant_folder

SECONDS_TO_END = 5
LOG_FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"
# On the terminal, by the number of -v; the log files always hold the messages (INFO and above).
LEVELS = (logging.CRITICAL, logging.WARNING, logging.INFO, logging.DEBUG)


def crash_files(settings: Settings, plan: RunPlan) -> Path:
    """Return the folder of the crash files of a run."""
    return settings.output_dir / "logs" / "crashes" / plan.run_id


def configure_nipype(settings: Settings, plan: RunPlan) -> None:
    """Set every relevant Nipype option; they override a user's configuration file.

    Call it before the graph is built: nodes copy the configuration when they are made.
    """
    config.update_config({
        "logging": {"log_to_file": False, "workflow_level": "INFO", "interface_level": "INFO"},
        "monitoring": {"enabled": settings.resource_monitor, "sample_frequency": "0.5"},
        "execution": {
            # Nipype's configuration takes a % for the name of another value.
            "crashdump_dir": str(crash_files(settings, plan)).replace("%", "%%"),
            "crashfile_format": "txt",
            "get_linked_libs": False,
            "stop_on_first_crash": settings.stop_on_first_crash,
            "stop_on_first_rerun": False,
            "remove_unnecessary_outputs": False,
            "remove_node_directories": False,
            "keep_inputs": False,
            "check_version": False,
            "create_report": False,
            "hash_method": "timestamp",
            "poll_sleep_duration": 0.1,
            "parameterize_dirs": False,
        },
    })  # fmt: skip
    if settings.resource_monitor:
        config.enable_resource_monitor()
    nipype_logging.update_logging(config)


class _OfParticipant(logging.Filter):
    """Pass log messages about one participant, or about none in particular."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._own = participant_workflow_name(label)

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return self._own in message or f"{WORKFLOW_NAME}.sub_" not in message


@contextmanager
def run_logs(
    settings: Settings, plan: RunPlan, participants: Sequence[Participant]
) -> Iterator[None]:
    """Write logs per participant: settings, Nipype's messages and the output of the network.

    Warnings of Python and its libraries go there too. A log that cannot be written (full disk)
    leaves no traceback on the terminal: what could not be logged is lost.
    """
    terminal = LEVELS[min(settings.verbose, 3)]
    with ExitStack() as stack:
        stack.callback(setattr, logging, "raiseExceptions", logging.raiseExceptions)
        logging.raiseExceptions = False
        stack.callback(logging.captureWarnings, False)
        logging.captureWarnings(True)
        for name in ("nipype.workflow", "nipype.interface", "nipype.utils"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(min(logging.INFO, terminal))
        for handler in logging.getLogger("nipype").handlers:
            stack.callback(handler.setLevel, handler.level)
            handler.setLevel(terminal)
        said: set[str] = set()
        for participant in participants:
            folder = run_file(settings, plan, participant).parent
            write_text(settings.to_toml(), folder / "config.toml")
            if participant.notices:
                lines = "".join(f"{notice}\n" for notice in participant.notices)
                write_text(lines, folder / "notices.txt")
            handler = logging.FileHandler(folder / "nipype.log", encoding="utf-8")
            handler.setFormatter(logging.Formatter(LOG_FORMAT))
            handler.addFilter(_OfParticipant(participant.label))
            stack.callback(_close, handler, said)
            for name in ("nipype", "py.warnings"):
                logging.getLogger(name).addHandler(handler)
                stack.callback(logging.getLogger(name).removeHandler, handler)
        try:
            yield
        finally:
            for participant in participants:
                _keep_network_log(settings, plan, participant)


def _close(handler: logging.Handler, said: set[str]) -> None:
    """Close a log; on a full disk its rest is lost, which is said once for each reason."""
    try:
        handler.close()
    except OSError as error:
        reason = error.strerror or str(error)
        if reason not in said:
            print(f"bids_moediff: logs could not be written: {reason}.", file=sys.stderr)
        said.add(reason)


def _keep_network_log(settings: Settings, plan: RunPlan, participant: Participant) -> None:
    folder = participant_folder(settings.work_folder, participant.label)
    node = folder / "superres_wf" / "superres"
    for stream in ("stdout", "stderr"):
        source = node / f"{stream}.nipype"
        if source.exists() and source.stat().st_size:
            folder = run_file(settings, plan, participant).parent
            shutil.copyfile(source, folder / f"superres_{stream}.log")


def write_methods(settings: Settings, text: str) -> None:
    """Write a methods text: Markdown, bibliography, HTML.

    A run that only makes reports keeps the text of the run that did the work.
    """
    from bids_moediff.reports.methods import methods_html

    logs = settings.output_dir / "logs"
    if settings.stage == "report" and (logs / "CITATION.md").is_file():
        return
    write_citation(settings.output_dir, text)
    body = methods_html({"methods": (logs / "CITATION.md").read_text(encoding="utf-8")})
    head = '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Methods</title>\n'
    write_text(visible(f"{head}{body}</html>\n"), logs / "CITATION.html")


def execute(settings: Settings, workflow: Workflow, plan: RunPlan, limits: Limits) -> Path:
    """Run the graph and return the folder of the crash files.

    Raises
    ------
    GraphError
        If the graph as a whole could not be run (no single node failed).
    """
    crash_folder = crash_files(settings, plan)
    if settings.write_graph:
        _write_graph(settings, workflow)
    devices = [device for device in plan.devices if device != "cpu"]
    try:
        words = REPORTING if settings.stage == "report" else PREPARING
        with Stop() as stop, ProgressWatcher(settings.work_folder, words=words):
            workflow.run(**choose_plugin(settings, limits, len(devices), stop.check))
    except Exception as error:
        if not crash_sentences(crash_folder):
            reason = " ".join(str(error).split())[-300:]
            logging.getLogger("nipype.workflow").debug(traceback.format_exc())
            raise GraphError(
                f"The workflow could not be run ({type(error).__name__}: {reason})."
            ) from error
    return crash_folder


class Stop:
    """Stop the run with all its processes when it is interrupted or its job is cancelled.

    Otherwise workers would continue, and write, after the run has ended. Nipype treats an
    interrupt inside a node as a crash of that node and continues with the next one; so
    :meth:`check`, which Nipype calls before and after each node, raises it again.
    """

    def __init__(self) -> None:
        self._number = 0

    def check(self, *_: object) -> None:
        """Raise an interrupt again; this is Nipype's status callback."""
        if self._number:
            raise SystemExit(128 + self._number)

    def _stop(self, number: int, _frame: object) -> None:
        self._number = number
        self.check()

    def __enter__(self) -> "Stop":
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._stop) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        if self._number:
            for number in self._before:
                signal.signal(number, signal.SIG_IGN)
            _end_children()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.check()


def _end_children() -> None:
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(children, timeout=SECONDS_TO_END)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _write_graph(settings: Settings, workflow: Workflow) -> None:
    """Write the graph as text, and as a picture if Graphviz is installed."""
    path = write_text(_dot(workflow), settings.output_dir / "logs" / "graph.dot")
    if program := shutil.which("dot"):
        command = [program, "-Tsvg", "-o", str(path.with_suffix(".svg")), str(path)]
        subprocess.run(command, check=False)


def _dot(workflow: Workflow) -> str:
    """Return the flat graph in the language of Graphviz."""
    graph = workflow._create_flat_graph()
    lines = [f'  "{a.fullname}" -> "{b.fullname}";' for a, b in graph.edges()]
    return "digraph bids_moediff {\n" + "\n".join(sorted(lines)) + "\n}\n"
