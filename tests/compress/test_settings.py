"""The pipeline file: every fault at once, at its line; the checks before any compute; the schema."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from compress import settings
from compress.artifact import Artifact
from compress.errors import BadPipeline
from compress.settings.places import Places

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.toml"


@pytest.fixture(scope="session")
def model(tiny: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama of 128 positions."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    artifact = tiny("llama")
    artifact.model.save_pretrained(folder)
    artifact.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of pipeline files that begin with a model and data that fit it."""

    def make(rest: str = "", head: str | None = None) -> Path:
        path = tmp_path / "p.toml"
        if head is None:
            head = f"[model]\nsource = '{model}'\n[data.evaluation]\nlength = 32\n"
            head += "[data.training]\nlength = 32\n[data.calibration]\nlength = 32\n"
            head += "[[target]]\nname = 'laptop'\nprompt = 16\ngenerate = 4\n"
        path.write_text(head + rest)
        return path

    return make


HEAD_LINES = 12


def faults_of(path: Path, checked: bool = False) -> list[str]:
    """Return the faults without the file's name, lines counted from the end of the head."""
    with pytest.raises(BadPipeline) as caught:
        (settings.check if checked else settings.read)(path)
    shown = []
    for fault in caught.value.faults:
        assert "\n" not in fault
        assert fault.startswith(f"{path}:"), fault
        line, _, rest = fault.removeprefix(f"{path}:").partition(":")
        shown.append(f"{int(line) - HEAD_LINES}:{rest}")
    return shown


# -- what a healthy file says ------------------------------------------------------------------------------------


def test_the_quickstart_says_what_it_says() -> None:
    read = settings.read(QUICKSTART)
    assert read.model.source == "demo"
    assert read.run.folder == Path("runs/demo")
    assert [(e.index, e.use, e.name) for e in read.passes] == [(1, "magnitude", "magnitude"), (2, "perp", "perp")]
    assert [(e.use, e.targets) for e in read.exports] == [("onnx", ("laptop",))]
    assert set(read.data) == {"calibration", "training", "evaluation"}
    assert read.data["calibration"].windows == 128
    text = QUICKSTART.read_text().splitlines()
    assert all(text[e.line - 1].startswith("[[pass]]") for e in read.passes)


def test_defaults(write: Callable[..., Path], model: Path) -> None:
    read = settings.read(write(head=f"model = {{source = '{model}'}}"))
    assert read.run.folder == Path("runs/p")
    assert (read.run.seed, read.compute.device, read.compute.dtype, read.compute.threads) == (0, "cpu", "float32", None)
    assert [t.name for t in read.targets] == ["cpu"]
    assert [(e.use, e.targets) for e in read.exports] == [("onnx", ("cpu",))]
    assert read.passes == ()


def test_repeated_passes_are_numbered(write: Callable[..., Path]) -> None:
    one = "[[pass]]\nuse = 'magnitude'\nsparsity = 0.{}\n"
    read = settings.read(write(one.format(3) + one.format(4) + "name = 'second'\n" + one.format(5)))
    assert [e.name for e in read.passes] == ["magnitude", "second", "magnitude-3"]
    assert [e.plugin.settings.sparsity for e in read.passes] == [0.3, 0.4, 0.5]


def test_safetensors_alone_needs_no_target(write: Callable[..., Path], model: Path) -> None:
    read = settings.read(write(head=f"[model]\nsource = '{model}'\n[[export]]\nuse = 'safetensors'\n"))
    assert read.targets == ()
    assert read.exports[0].targets == ()


def test_an_encoder_generates_nothing_unless_asked(write: Callable[..., Path], model: Path) -> None:
    head = f"[model]\nsource = '{model}'\ntask = 'embedding'\n[[target]]\n"
    assert settings.read(write(head=head)).targets[0].generate == 0
    with pytest.raises(BadPipeline, match=r":5: target\[1\]\.generate: must be 0"):
        settings.read(write(head=head + "generate = 3\n"))


def test_a_source_beside_the_file_wins(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    head = "[model]\nsource = '{}'\n[data.training]\nsource = '{}'\n"
    read = settings.read(write(head=head.format("here", "here")))
    assert read.model.source == read.data["training"].source == str(tmp_path / "here")
    (tmp_path / "demo").mkdir()
    assert settings.read(write(head=head.format("demo", "python-docs"))).model.source == "demo"
    assert settings.read(write(head=head.format("elsewhere/x", "python-docs"))).model.source == "elsewhere/x"


# -- the faults of a file ----------------------------------------------------------------------------------------

FAULTS = {
    "an unknown table": ("[modle]\n", ["1: modle: unknown table; did you mean 'model'?"]),
    "an unknown key": ("[run]\nsed = 1\n", ["2: run.sed: unknown setting; did you mean 'seed'?"]),
    "an unknown key of a pass": (
        "[[pass]]\nuse = 'magnitude'\npatern = '2:4'\n",
        ["3: pass[1].patern (magnitude): unknown setting; did you mean 'pattern'?"],
    ),
    "an unknown pass": (
        "[[pass]]\nuse = 'magnitud'\n",
        ["2: pass[1].use: must name one of the passes, got 'magnitud'; did you mean 'magnitude'?"],
    ),
    "an unknown exporter": (
        "[[export]]\nuse = 'onx'\n",
        ["2: export[1].use: must name one of the exporters, got 'onx'; did you mean 'onnx'?"],
    ),
    "an unknown use of data": (
        "[data.trainin]\nwindows = 3\n",
        ["1: data.trainin: unknown use of data; did you mean 'training'?"],
    ),
    "sparsity 1.2": (
        "[[pass]]\nuse = 'magnitude'\nsparsity = 1.2\n",
        ["3: pass[1].sparsity (magnitude): must be less than 1, got 1.2"],
    ),
    "not a number": (
        "[[pass]]\nuse = 'magnitude'\nsparsity = nan\n",
        ["3: pass[1].sparsity (magnitude): must be less than 1, got nan"],
    ),
    "4:2": (
        "[[pass]]\nuse = 'magnitude'\npattern = '4:2'\n",
        ["3: pass[1].pattern (magnitude): must be 'unstructured' or N:M with N < M, got '4:2'"],
    ),
    "text for a number": (
        "[[pass]]\nuse = 'magnitude'\nsparsity = '0.5'\n",
        ["3: pass[1].sparsity (magnitude): must be a number, got '0.5'"],
    ),
    "a number in a list of texts": (
        "[[pass]]\nuse = 'magnitude'\ninclude = [\n  'q_proj',  # ]\n  3,\n]\nsparsity = true\n",
        [
            "3: pass[1].include (magnitude): item 2 must be text in quotes, got 3",
            "7: pass[1].sparsity (magnitude): must be a number, got true",
        ],
    ),
    "one of a few": (
        "[compute]\ndtype = 'float64'\n",
        ["2: compute.dtype: must be 'float32', 'bfloat16' or 'float16', got 'float64'"],
    ),
    "no device": (
        "[compute]\ndevice = 'tpu'\n",
        ["2: compute.device: must be 'cpu', 'cuda' or 'cuda:<number>', got 'tpu'"],
    ),
    "names that repeat": (
        "[[pass]]\nuse = 'magnitude'\nname = 'a'\n[[pass]]\nuse = 'magnitude'\nname = 'a'\n"
        "[[target]]\nname = 'laptop'\nprompt = 9\ngenerate = 9\n",
        [
            "6: pass[2].name (magnitude): must differ from the names before it, got 'a'",
            "8: target[2].name: must differ from the names before it, got 'laptop'",
        ],
    ),
    "names that are no folder names": (
        "[[pass]]\nuse = 'magnitude'\nname = '../a'\n",
        [
            "3: pass[1].name (magnitude): must begin with a letter or digit and hold only letters, digits, "
            "'.', '_' and '-', got '../a'"
        ],
    ),
    "a target named like a parent's engine": (
        "[[target]]\nname = 'laptop-dense'\nprompt = 9\ngenerate = 9\n",
        ["2: target[2].name: must not end in '-dense' as the parent's engine does, got 'laptop-dense'"],
    ),
    "an export for an unknown target": (
        "[[export]]\nuse = 'onnx'\ntargets = ['labtop', 'laptop']\n",
        ["3: export[1].targets (onnx): no such target, got 'labtop'; did you mean 'laptop'?"],
    ),
    "a target that no export serves": (
        "[[target]]\nname = 'b'\nruntime = 'abacus'\nprompt = 9\ngenerate = 9\n",
        ["3: target[2].runtime: no [[export]] writes for this target, got 'abacus'; known runtimes: "
         "onnxruntime, onnxruntime-tensorrt, tensorrt, tensorrt-rtx, torch, torch-compiled"],
    ),
    "targets for what needs none": (
        "[[export]]\nuse = 'onnx'\n[[export]]\nuse = 'safetensors'\ntargets = ['laptop']\n",
        ["5: export[2].targets (safetensors): needs no target; leave it out"],
    ),
    "no use": (
        "[[export]]\nname = 'x'\n",
        ["1: export[1].use: must name one of the exporters; known: onnx, safetensors, tensorrt, torch"],
    ),
    "one bracket": (
        "[pass]\nuse = 'magnitude'\n",
        ["1: pass: must be written [[pass]], with two brackets, since it may repeat"],
    ),
    "two brackets": ("[[run]]\nseed = 1\n", ["1: run: must be a table, written [run]"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_at_its_place(name: str, write: Callable[..., Path]) -> None:
    text, expected = FAULTS[name]
    assert faults_of(write(text)) == expected


def test_all_faults_come_at_once_sorted_by_line(write: Callable[..., Path]) -> None:
    texts = [FAULTS[n][0] for n in ("an unknown key", "sparsity 1.2", "an unknown table", "an unknown exporter")]
    assert [f.split(":")[0] for f in faults_of(write("".join(texts)))] == ["2", "5", "6", "8"]


def test_of_a_faulty_file_the_rest_is_judged_too(write: Callable[..., Path]) -> None:
    found = faults_of(write("[[pass]]\nuse = 'magnitude'\ninclude = ['x_proj']\n[run]\nsede = 3\n"))
    assert found[0].startswith("3: pass[1].include (magnitude): 'x_proj' matches no linear; there are q_proj")
    assert found[1] == "5: run.sede: unknown setting; did you mean 'seed'?"


def test_files_that_say_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BadPipeline) as caught:
        settings.read(write(head=""))
    assert caught.value.faults == [
        f'{tmp_path / "p.toml"}:1: model: the table is missing; add [model] with source = a folder, a hub id or "demo"'
    ]
    with pytest.raises(BadPipeline, match=r"p.toml:1: model.source: must be given; a folder, a hub id"):
        settings.read(write(head="[model]\n"))
    with pytest.raises(BadPipeline, match=r"none.toml: no such file; `compress init MODEL -o .*` writes one"):
        settings.read(tmp_path / "none.toml")
    with pytest.raises(BadPipeline, match="cannot be read"):
        settings.read(tmp_path)


KEYS = st.sampled_from(
    ["run", "compute", "model", "data", "target", "pass", "export", "use", "name", "source", "seed", "targets", "task",
     "training", "evaluation", "sparsity", "pattern", "include", "folder", "device", "windows", "x y"]
)  # fmt: skip
LEAVES = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.dates(),
    st.sampled_from(["", "magnitude", "perp", "onnx", "safetensors", "2:4", "unstructured", "../x", "cuda:0", "é\n"]),
)  # fmt: skip
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=4), max_leaves=12)


def toml(value: Any) -> str:
    """Write a value as TOML does, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value) if isinstance(value, bool | str) else str(value)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_whatever_a_file_holds_it_is_read_or_refused_line_by_line(document: dict[str, Any]) -> None:
    text = "\n".join(f"{json.dumps(k)} = {toml(v)}" for k, v in document.items())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.toml"
        path.write_text(text, encoding="utf-8")
        try:
            assert settings.read(path).model.source
        except BadPipeline as error:
            lines = [int(f.removeprefix(f"{path}:").partition(":")[0]) for f in error.faults]
            assert lines == sorted(lines)
            assert 1 <= lines[0] <= lines[-1] <= max(1, len(document))


@pytest.mark.parametrize(
    ("text", "place"),
    [("[model\n", "1:7"), ("[model]\nsource = x\n", "2:10"), ("a = 1\na = 2\n", "2:6"), ("a = '''\n\nb", "3:2")],
)
def test_what_is_no_toml_names_line_and_column(text: str, place: str, write: Callable[..., Path]) -> None:
    with pytest.raises(BadPipeline) as caught:
        settings.read(write(head=text))
    (fault,) = caught.value.faults
    assert f"p.toml:{place}: is no TOML: " in fault


def test_bytes_that_are_no_text_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(b"[model]\n# caf\xe9\n")
    with pytest.raises(BadPipeline, match=r"p.toml:2: is no UTF-8 text"):
        settings.read(path)


# -- what only the model, the data and the machine can tell ------------------------------------------------------

JUDGED = {
    "a pattern that matches nothing": (
        "[[pass]]\nuse = 'magnitude'\ninclude = ['q_porj']\n",
        ["3: pass[1].include (magnitude): 'q_porj' matches no linear"],
    ),
    "N:M that does not divide": (
        "[[pass]]\nuse = 'magnitude'\npattern = '1:5'\n",
        ["3: pass[1].pattern (magnitude): 1:5 does not divide the 32 inputs of model.layers.0.self_attn.q_proj"],
    ),
    "N:M with another sparsity": (
        "[[pass]]\nuse = 'magnitude'\npattern = '2:4'\nsparsity = 0.6\n",
        ["4: pass[1].sparsity (magnitude): 2:4 fixes the sparsity at 0.5, got 0.6"],
    ),
    "two passes, each with its own fault": (
        "[[pass]]\nuse = 'magnitude'\npattern = '1:5'\n[[pass]]\nuse = 'magnitude'\nname = 'b'\nexclude = ['z']\n",
        ["3: pass[1].pattern (magnitude): 1:5", "7: pass[2].exclude (magnitude): 'z' matches no linear"],
    ),
    "perp on a model without masks": (
        "[[pass]]\nuse = 'perp'\ntrain = ['mask_lora']\n",
        ["3: pass[1].train (perp): "],
    ),
    "a request longer than the model": (
        "[[target]]\nname = 'b'\nprompt = 100\ngenerate = 40\n",
        ["4: target[2].generate: prompt + generate is 140 tokens, and the model takes at most 128; lower one of them"],
    ),
    "no such GPU": (
        "[compute]\ndevice = 'cuda:99'\n",
        ["2: compute.device: no such GPU, got 'cuda:99'; "],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGED)
def test_check_refuses_before_any_compute(name: str, write: Callable[..., Path]) -> None:
    text, expected = JUDGED[name]
    found = faults_of(write(text), checked=True)
    assert [f[: len(e)] for f, e in zip(found, expected, strict=True)] == expected


def test_check_returns_the_facts_before_and_after_each_pass(write: Callable[..., Path]) -> None:
    facts = settings.check(write("[[pass]]\nuse = 'magnitude'\npattern = '2:4'\n"))
    assert len(facts) == 2
    assert not facts[0].masks
    assert {m.pattern for m in facts[1].masks.values()} == {"2:4"}
    assert len(facts[1].masks) == 14


def test_windows_longer_than_the_model_and_a_text_that_is_missing(write: Callable[..., Path], model: Path) -> None:
    head = (
        f"[model]\nsource = '{model}'\n[data.evaluation]\nlength = 129\nsource = './none.txt'\n[[target]]\nprompt = 9\n"
    )
    with pytest.raises(BadPipeline) as caught:
        settings.check(write(head=head))
    assert [f.split("p.toml:")[1][:27] for f in caught.value.faults] == [
        "4: data.evaluation.length: ",
        "5: data.evaluation.source: ",
    ]


def test_a_model_that_is_not_there(write: Callable[..., Path]) -> None:
    with pytest.raises(BadPipeline, match=r"p.toml:3: model.source: .*/nowhere: no such folder"):
        settings.check(write(head="\n[model]\nsource = '/nowhere'\n"))


# -- places ------------------------------------------------------------------------------------------------------


def test_places_of_every_kind_of_toml() -> None:
    text = '''# [not.a.table]
a = """
[still.text] = 1 \\"""
""" # x
[ b . "c.d" ] # e
f.g = {h = [1,
  2], i = '}'}
"j \\u0061" = 'k = """'
[[l]]
m = [[1], ["]", '[x]'
]]
[l.n]
o = 1
[[l]]
[[l.p]]
q = """a"""""
[l.n]
r = 1979-05-27T07:32:00Z
'''
    places = Places(text)
    expected = {
        ("a",): 2, ("b",): 5, ("b", "c.d"): 5, ("b", "c.d", "f", "g"): 6, ("b", "c.d", "j a"): 8,
        ("l", 0): 9, ("l", 0, "m"): 10, ("l", 0, "n"): 12, ("l", 0, "n", "o"): 13,
        ("l", 1): 14, ("l", 1, "p", 0): 15, ("l", 1, "p", 0, "q"): 16, ("l", 1, "n", "r"): 18,
    }  # fmt: skip
    assert {p: places.line(p) for p in expected} == expected
    assert all(places.written(p) for p in expected)
    assert places.line(("b", "c.d", "f", "g", "h")) == 6
    assert not places.written(("still",))


# -- the schema --------------------------------------------------------------------------------------------------


def test_the_schema_knows_every_plugin() -> None:
    found = settings.schema()
    uses = {i["properties"]["use"]["const"] for i in found["properties"]["pass"]["items"]["oneOf"]}
    assert {"magnitude", "perp"} <= uses
    assert found["additionalProperties"] is False
    magnitude = next(i for i in found["properties"]["pass"]["items"]["oneOf"] if i["title"] == "magnitude")
    assert magnitude["additionalProperties"] is False
    assert {"use", "name", "pattern", "sparsity", "include", "exclude"} <= set(magnitude["properties"])


def test_the_schema_takes_the_quickstart_and_refuses_a_misspelling() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    tomllib = importlib.import_module("tomllib")
    document: Any = tomllib.loads(QUICKSTART.read_text())
    jsonschema.Draft202012Validator.check_schema(settings.schema())
    jsonschema.validate(document, settings.schema())
    document["pass"][0]["patern"] = "2:4"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, settings.schema())
