# SPDX-License-Identifier: Apache-2.0
"""Choose the Nipype plugin that runs the graph."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from nipype.pipeline.plugins.base import PluginBase
from nipype.pipeline.plugins.linear import LinearPlugin

from bids_moediff.errors import UsageError
from bids_moediff.runtime.given_files import read_text
from bids_moediff.runtime.resources import Limits
from bids_moediff.settings import Settings

from .isolated_plugin import IsolatedMultiProcPlugin


def choose_plugin(
    settings: Settings, limits: Limits, num_devices: int, status_callback: Callable[..., None]
) -> dict[str, Any]:
    """Return the plugin and its arguments for ``Workflow.run``.

    One processor: in this process, step by step. More: a process for each step. A plugin file
    (YAML with ``plugin`` and ``plugin_args``) overrides this.
    """
    arguments = {
        "n_procs": limits.nprocs,
        "memory_gb": limits.memory_gb,
        "n_gpu_procs": num_devices,
        "raise_insufficient": False,
        "status_callback": status_callback,
    }
    if settings.use_plugin is None:
        name = "Linear" if limits.nprocs == 1 else "MultiProc"
    else:
        name, given = read_plugin_file(settings.use_plugin)
        arguments = {**arguments, **given} if name in ("MultiProc", "Linear") else given
    if name == "MultiProc":
        return {"plugin": IsolatedMultiProcPlugin(plugin_args=arguments)}
    if name == "Linear":
        return {"plugin": LinearPlugin(plugin_args=arguments)}
    return {"plugin": name, "plugin_args": arguments}


def read_plugin_file(path: Path) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of the plugin in a YAML file."""
    import nipype.pipeline.plugins as plugins

    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"The plugin file {path} cannot be read: {reason}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise UsageError(f"The plugin file {path} has no line 'plugin: NAME'.")
    unknown = sorted(set(content) - {"plugin", "plugin_args"})
    if unknown:
        raise UsageError(f"The plugin file {path} has an unknown key: {unknown[0]}.")
    name, arguments = content["plugin"], content.get("plugin_args") or {}
    kind = getattr(plugins, f"{name}Plugin", None)
    if not (isinstance(kind, type) and issubclass(kind, PluginBase)):
        raise UsageError(f"The plugin file {path} names {name!r}, which Nipype does not have.")
    if not isinstance(arguments, dict):
        raise UsageError(f"In the plugin file {path}, plugin_args is not a mapping.")
    return name, arguments
