"""The pipeline file: TOML in, frozen settings out, every fault at once with its line.

`read` judges the file alone; `check` also judges it against the model, the data and the machine, before any compute.

A relative `source` of a model or of data is looked for beside the pipeline file first; what is not there is taken as
written: a path from the current folder, a built-in name or a hub id.  `demo`, `python-docs` and `python-source` always
mean the built-in ones (write `./demo` for a folder of that name).  `run.folder` counts from the current folder.
"""

from compress.settings.json_schema import schema
from compress.settings.reading import check, check_rest, read
from compress.settings.tables import ComputeSettings, Entry, ModelSettings, Pipeline, RunSettings

__all__ = [
    "ComputeSettings", "Entry", "ModelSettings", "Pipeline", "RunSettings", "check", "check_rest", "read", "schema",
]  # fmt: skip
