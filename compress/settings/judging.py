"""Judge a pipeline against its model, its data and this machine, before any compute."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import partial

from pydantic import ValidationError

from compress import registry
from compress.contracts import Exporter, Pass, Target
from compress.data.places import locate
from compress.errors import BadSettings, UserFault
from compress.facts import Facts
from compress.settings.faults import Faults, got
from compress.settings.tables import ROLES, Entry, Pipeline


def judge(pipeline: Pipeline, faults: Faults) -> list[Facts]:
    """Return the facts before the first pass and after each, adding every fault on the way.

    The list ends at the first pass whose outcome cannot be told.
    """
    from compress import loading  # seconds of torch and transformers, which a fault of the file alone need not wait for

    _judge_device(pipeline.compute.device, faults)
    model = pipeline.model
    start = faults.attempt(
        ("model", "source"),
        None,
        lambda: loading.facts_of(
            model.source,
            model.task,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            labels=model.labels,
        ),
    )
    if start is None:
        _judge_data(pipeline, [], faults)
        return []
    if pipeline.compute.weights == "disk":
        start = start.after(stored=True)
        _judge_streams(pipeline, faults)
    _judge_targets(pipeline, start, faults)
    _judge_gains(pipeline, faults)
    facts = _fold(pipeline, start, faults)
    _judge_dense(pipeline, facts, faults)
    _judge_data(pipeline, facts, faults)
    if len(facts) > len(pipeline.passes):
        _judge_exports(pipeline, facts[-1], faults)
    return facts


def judge_rest(pipeline: Pipeline, done: int, facts: Facts, faults: Faults) -> list[Facts]:
    """Return the facts after some passes, now that they are known, and after each pass to come; as `judge` does.

    Args:
        pipeline: judged as a whole before.
        done: how many passes have run.
        facts: what is known of the model that the last of them left.
        faults: where faults go.
    """
    found = _fold(pipeline, facts, faults, done)
    if len(found) > len(pipeline.passes) - done:
        _judge_exports(pipeline, found[-1], faults)
    return found


def _judge_device(device: str, faults: Faults) -> None:
    if device != "cpu":
        there = _gpus()
        if int(device.partition(":")[2] or 0) >= there:
            have = f"this machine has {there} of them" if there else "torch finds none here"
            faults.add(("compute", "device"), f"no such GPU{got(device)}; {have}, device = 'cpu' would do")


def _judge_streams(pipeline: Pipeline, faults: Faults) -> None:
    """Refuse what needs the whole model in memory, where its weights stay on disk."""
    able = ", ".join(n for n in registry.names("passes") if registry.load("passes", n, Pass).streams)
    for entry in pipeline.passes:
        if not entry.plugin.streams:
            what = "needs the whole model in memory, got weights = 'disk'; weights = 'memory' would do, or one of"
            faults.add(("pass", entry.index - 1, "use"), f"{what} {able}", entry.use)
    for entry in pipeline.exports:
        if not entry.plugin.streams:
            what = "needs the whole model in memory, got weights = 'disk'; [[export]] use = 'safetensors' would do"
            faults.add(("export", entry.index - 1, "use"), what, entry.use)


def _fold(pipeline: Pipeline, start: Facts, faults: Faults, done: int = 0) -> list[Facts]:
    """Return the facts at the start, which so many passes have led to, and after each pass that follows."""
    facts, targets = [start], {t.name: t for t in pipeline.targets}
    for entry in pipeline.passes[done:]:
        assert isinstance(entry.plugin, Pass)
        if faults.about("pass") and entry.index != done + len(facts):
            break  # the pass before it could not be read
        try:
            _judge_grids(entry, facts[-1])
            entry.plugin.targets(targets)
            entry.plugin.files()
            after = entry.plugin.plan(facts[-1])
            facts.append(after if entry.plugin.library else after.after(library=False))
        except UserFault as error:
            faults.add_error(("pass", entry.index - 1), error, entry.use)
            mended = _with_default(entry.plugin, error, facts[-1])
            if mended is None:
                break
            facts.append(mended)
    return facts


def _judge_grids(entry: Entry, facts: Facts) -> None:
    """Raise `BadSettings` for a pass that needs floats, after one that left codes."""
    if facts.grids and isinstance(entry.plugin, Pass) and not entry.plugin.quantized:
        name, fact = next(iter(facts.grids.items()))
        what = f"works on float weights, and {name} has codes of {fact.told} from an earlier pass"
        raise BadSettings(f"{what}; put {entry.use} before the pass that quantizes", key="use")


def _with_default(plugin: Pass, error: UserFault, facts: Facts) -> Facts | None:
    """Return the facts after a pass whose faulty setting had its default, so that later passes can be judged too."""
    given = plugin.settings.model_dump(exclude_unset=True)
    if not isinstance(error, BadSettings) or error.key not in given:
        return None
    try:
        settings = type(plugin.settings)(**{k: v for k, v in given.items() if k != error.key})
        return type(plugin)(settings).plan(facts)
    except (ValidationError, UserFault):
        return None


def _judge_exports(pipeline: Pipeline, facts: Facts, faults: Faults) -> None:
    targets = {t.name: (i, t) for i, t in enumerate(pipeline.targets)}
    for entry in pipeline.exports:
        exporter, path = entry.plugin, ("export", entry.index - 1)
        assert isinstance(exporter, Exporter)
        if missing := exporter.available():
            faults.add((*path, "use"), missing, entry.use)
            continue
        if exporter.runtimes and not entry.targets:
            continue  # its targets are only estimated
        served: list[tuple[int, Target | None]] = [targets[n] for n in entry.targets]
        for index, target in served or [(0, None)]:
            try:
                exporter.plan(facts, target)
            except UserFault as error:
                key = error.key if isinstance(error, BadSettings) else None
                of_target = key in Target.model_fields and key not in type(exporter).Settings.model_fields
                faults.add_error(("target", index) if target and of_target else path, error, entry.use)


def _judge_targets(pipeline: Pipeline, facts: Facts, faults: Faults) -> None:
    ahead = _ahead(pipeline)
    for index, target in enumerate(pipeline.targets):
        here = target.device == "cpu" or target.name in {*pipeline.estimated, *ahead}
        if not here and not _gpus() and not shutil.which("nvidia-smi"):
            what = f"the engine could not be verified here, where no GPU is{got(target.device)}"
            faults.add(("target", index, "device"), f"{what}; run on a machine with one, or use device = 'cpu'")
        tokens = target.prompt + target.generate
        if facts.positions is not None and tokens > facts.positions:
            key = "prompt" if target.prompt > facts.positions or not target.generate else "generate"
            what = f"prompt + generate is {tokens} tokens, and the model takes at most {facts.positions}"
            faults.add(("target", index, key), f"{what}; lower one of them")


def _ahead(pipeline: Pipeline) -> set[str]:
    """Return the targets whose engines can be made without their device: nothing of the run has to time them."""
    targets = {t.name: t for t in pipeline.targets}
    writers = {n: [e.plugin for e in pipeline.exports if n in e.targets] for n in targets}
    found = {n for n, plugins in writers.items() if plugins and all(getattr(p, "ahead", False) for p in plugins)}
    if pipeline.sweep or pipeline.run.gain or any(e.bound for e in pipeline.passes):
        return set()
    for entry in pipeline.passes:
        assert isinstance(entry.plugin, Pass)
        with suppress(UserFault):  # told where the pass itself is judged
            found -= set(entry.plugin.targets(targets))
    return found


def _judge_gains(pipeline: Pipeline, faults: Faults) -> None:
    """Refuse what no engine of this pipeline could show."""
    if faults.about("target", "export", "pass"):
        return  # which engines there are is not known
    targets = {t.name: t for t in pipeline.targets}
    made = [targets[n] for e in pipeline.exports for n in e.targets]
    needed = "needs an engine to be measured on, and no [[export]] writes one; [[export]] use = 'onnx' would do"
    if pipeline.run.gain and not made:
        faults.add(("run", "gain"), needed)
    for entry in pipeline.passes:
        path = ("pass", entry.index - 1, "expect" if entry.expect else "on_no_gain")
        if entry.bound and not made:
            faults.add(path, needed, entry.use)
        elif entry.expect and entry.expect.decode_speedup and not made[0].generate:
            what = f"decode_speedup needs tokens to be generated, and target {made[0].name!r} has generate = 0"
            faults.add(path, f"{what}; prefill_speedup would do", entry.use)


def _judge_dense(pipeline: Pipeline, facts: list[Facts], faults: Faults) -> None:
    """Refuse a dense model that is not whole, or that may be left out."""
    marked = [entry for entry in pipeline.passes if entry.dense]
    for entry in marked[:1]:
        path, after = ("pass", entry.index - 1, "dense"), next(iter(facts[entry.index :]), None)
        if entry.on_no_gain != "keep":
            what = "what all is measured beside cannot depend on what it gains"
            faults.add(path, f"{what}{got(entry.on_no_gain)}; on_no_gain = 'keep' would do", entry.use)
        if after and (after.masks or after.grids or after.branches or after.open or after.layout != facts[0].layout):
            what = "what is pruned, quantized or cut is not dense"
            faults.add(path, f"{what}{got(True)}; mark a pass before it, or none", entry.use)
    for entry in marked[1:]:
        what = f"only one pass leaves the dense model, and {marked[0].name!r} does"
        faults.add(("pass", entry.index - 1, "dense"), f"{what}{got(True)}; leave it out", entry.use)


def _judge_data(pipeline: Pipeline, facts: list[Facts], faults: Faults) -> None:
    used = {role for e in pipeline.passes if isinstance(e.plugin, Pass) for role in e.plugin.data_uses()}
    if facts:
        plugins = (e.plugin for e in pipeline.exports)
        used |= {role for p in plugins if isinstance(p, Exporter) for role in p.data_uses(facts[-1])}
    for role in ROLES:
        settings, path = pipeline.data.get(role), ("data", role)
        if settings is None:
            continue  # faulty, and told so
        faults.attempt((*path, "source"), None, partial(locate, settings, role))
        positions = facts[0].positions if facts else None
        if role in used | {"evaluation"} and positions is not None and settings.length > positions:
            faults.add((*path, "length"), f"the model takes at most {positions} tokens{got(settings.length)}; lower it")


def _gpus() -> int:
    """Return how many GPUs torch reaches."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
