# SPDX-License-Identifier: Apache-2.0
"""Steps on one image, one after another: who hands on to whom what went wrong.

A step does not raise (see ``interfaces.step``): it puts one sentence into an output, and the steps
after it do nothing but hand it on. How that is wired is known here alone.
"""

from typing import Any, Self

from nipype.pipeline import engine as pe

# Names of the two inlets of a step; a workflow has fields of these names. A step has one outlet.
FAILURE = "failure"
BESIDE = "failure_beside"
FAILURES = (FAILURE, BESIDE)


class Chain:
    """What has been built so far; each step comes after the one before.

    Parameters
    ----------
    workflow
        Where steps are connected.
    node
        First step, or what hands in a sentence from outside.
    field
        Which sentence of ``node`` it is.
    """

    def __init__(self, workflow: pe.Workflow, node: Any, field: str = FAILURE) -> None:
        self.workflow = workflow
        self._ends = [(node, field)]

    @property
    def end(self) -> tuple[Any, str]:
        """The last step and its outlet."""
        (end,) = self._ends
        return end

    def step(self, node: Any, **sources: tuple[Any, str]) -> Self:
        """Add a step (or a workflow); ``sources`` give its other inputs, as (node, field)."""
        for inlet, (source, field) in sources.items():
            self._connect(source, field, node, inlet)
        for inlet, (source, field) in zip(FAILURES, self._ends, strict=False):
            self._connect(source, field, node, inlet)
        self._ends = [(node, FAILURE)]
        return self

    def beside(self) -> "Chain":
        """Return a second chain from here, whose steps do not wait for those of this one."""
        return Chain(self.workflow, *self.end)

    def join(self, other: "Chain") -> Self:
        """Let the next step come after the end of another chain too."""
        self._ends = [self.end, other.end]
        return self

    def leave(self, outputnode: pe.Node, field: str = FAILURE) -> None:
        """Hand the sentence out of the workflow."""
        self._connect(*self.end, outputnode, field)

    def _connect(self, source: Any, field: str, node: Any, inlet: str) -> None:
        self.workflow.connect(source, _port(source, "out", field), node, _port(node, "in", inlet))


def _port(node: Any, way: str, field: str) -> str:
    return f"{way}putnode.{field}" if isinstance(node, pe.Workflow) else field
