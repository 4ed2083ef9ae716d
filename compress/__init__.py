"""A transformer and a piece of hardware in, a verified smaller engine out.

Everything that the command line does is one call; nothing heavy is imported before it is used:

    compress run FILE               compress.run(file)
    compress sweep FILE             compress.sweep.running.sweep(file)
    compress check FILE             compress.check(file); the file's content: compress.read(file)
    compress check --schema         compress.schema()
    compress plan FILE              compress.plan(file)
    compress report RUN             compress.pipeline.report(folder)
    compress init MODEL -o FILE     compress.init.write(model, file)
    compress evaluate PATH          compress.evaluate.paths.evaluate_path(path)
    compress generate ENGINE TEXT   compress.generate.generate_path(folder, text)
    compress compare A B            compress.measure.compare(a, b)
    compress export SOURCE FOLDER   compress.export(source, folder)
    compress list [NAME]            compress.catalogue(), compress.card(name)
    compress show PATH              compress.show(path)
    compress profile SOURCE -o FILE compress.profiling.profiler().take(wanted, file, report)
    compress doctor                 compress.doctor.doctor()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.cards import card, catalogue
    from compress.folders import export, show
    from compress.pipeline import plan, run
    from compress.settings import check, read, schema

__all__ = ["card", "catalogue", "check", "export", "plan", "read", "run", "schema", "show"]

_HOMES = {
    "card": "cards",
    "catalogue": "cards",
    "check": "settings",
    "export": "folders",
    "plan": "pipeline",
    "read": "settings",
    "run": "pipeline",
    "schema": "settings",
    "show": "folders",
}
_MODULES = ("doctor", "evaluate", "generate", "init", "measure", "pipeline")


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None and name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
