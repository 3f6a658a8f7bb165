# SPDX-License-Identifier: Apache-2.0
"""Nipype's MultiProc, but it survives the death of a worker.

In Nipype's own plugin all nodes share one process pool. If the kernel kills one worker (out of
memory), every pending node of the pool is lost and the loop waits forever for results (nipype
issue 2548). Here each node has its own process, so a death affects that node only. The node then
gets the reason and runs again, to pass the sentence on to the steps after it.
"""

import gc
import os
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

from bids_moediff.runtime.platform import die_with_parent


def _begin(folder: str, parent: int) -> None:
    """Set up a worker that ends with the run, however the run ends."""
    die_with_parent(parent)
    process_initializer(folder)


class IsolatedMultiProcPlugin(MultiProcPlugin):
    """Nipype's MultiProc (same ``plugin_args``) with one process per node."""

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown()
        self._nodes: dict[int, Any] = {}

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the graph.

        Nipype collects garbage each time it looks for work, ten times a second. With the libraries
        of the graph loaded this takes half a processor. Objects from before the run are not
        garbage, so they are left out of the search (and not copied by the workers).
        """
        gc.freeze()
        try:
            super().run(graph, config, updatehash)
        finally:
            gc.unfreeze()

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        self._nodes[self._taskid] = node
        self._start(self._taskid, updatehash)
        return self._taskid

    def _start(self, taskid: int, updatehash: bool = False) -> None:
        pool = ProcessPoolExecutor(
            max_workers=1,
            initializer=_begin,
            initargs=(self._cwd, os.getpid()),
            mp_context=get_context(self.plugin_args.get("mp_context")),
        )
        future = pool.submit(run_node, self._nodes[taskid], updatehash, taskid)
        self._task_obj[taskid] = future
        future.add_done_callback(self._async_callback)
        pool.shutdown(wait=False)

    def _async_callback(self, args: Future[dict[str, Any]]) -> None:
        """Do nothing: :meth:`_get_result` asks the future itself."""

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        future = self._task_obj[taskid]
        if not future.done():
            return None
        error = future.exception()
        if error is None:
            return future.result()
        node = self._nodes[taskid]
        if isinstance(error, BrokenProcessPool) and getattr(node.inputs, "failure", None) == "":
            # Connected inputs are read anew at every run: the sentence must not be overwritten.
            node.input_source.pop("failure", None)
            node.inputs.failure = death_sentence(type(node.interface).__name__, node.mem_gb)
            self._start(taskid)
            return None
        return {
            "result": None,
            "traceback": [f"{type(error).__name__}: {error}"],
            "taskid": taskid,
        }

    def _clear_task(self, taskid: int) -> None:
        del self._task_obj[taskid]
        del self._nodes[taskid]

    def _postrun_check(self) -> None:
        """Do nothing: every process has ended with its node."""


def death_sentence(step: str, gigabytes: float) -> str:
    """Return why a killed process was probably killed."""
    return (
        f"{step} was killed, most likely for want of memory: it needs about {gigabytes:.1f} GB; "
        "give the run more memory or fewer processes at a time (--nprocs)."
    )
