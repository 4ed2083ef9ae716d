from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from compress.data import encode_answer, encoding
from compress.data.columns import Answer, Question, Sentences
from compress.errors import BadData

DOCUMENTS = [
    "the quick brown fox",
    "jumps over",
    " ",
    "the lazy dog; a model is pruned and retrained",
    "ö ü \U0001f600 end",
]


@pytest.fixture
def pairing() -> PreTrainedTokenizerFast:
    """A tokenizer of words as BERT has it: [CLS] a [SEP] b [SEP], with token types."""
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return made


def bare(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


# -- windows -----------------------------------------------------------------------------------------------------


def test_joined_windows_are_a_choice_of_those_cut_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = np.random.default_rng(5)
    texts = [t for t in DOCUMENTS if t != " "]
    row = [token for i in rng.permutation(4) for token in [0, *bare(tokenizer, texts[i])]]
    cut = [row[i : i + 8] for i in range(0, len(row) - 7, 8)]
    chosen = [cut[i] for i in rng.permutation(len(cut))]
    assert len(chosen) == 4
    for count, wanted in ((3, chosen[:3]), (0, chosen), (99, chosen)):
        assert encoding.joined_windows(tokenizer, DOCUMENTS, 8, count, 5).tolist() == wanted
    assert encoding.joined_windows(tokenizer, DOCUMENTS, 8, 0, 6).tolist() != chosen


def test_no_bos_where_the_tokenizer_has_none(pairing: PreTrainedTokenizerFast) -> None:
    windows = encoding.joined_windows(pairing, ["a b c", "d"], 2, 0, 0)
    assert sorted(windows.flatten().tolist()) == [4, 5, 6, 7]


def test_of_much_text_only_four_times_what_is_asked_for_is_read(tokenizer: PreTrainedTokenizerFast) -> None:
    many = [f"{i} fox" for i in range(1000)]
    order = np.random.default_rng(0).permutation(1000)
    read = [token for i in order[:64] for token in [0, *bare(tokenizer, many[i])]]  # 64 documents at once are enough
    assert len(read) >= 4 * 5 * 8
    cut = [read[i : i + 8] for i in range(0, len(read) - 7, 8)]
    windows = encoding.joined_windows(tokenizer, many, 8, 5, 0).tolist()
    assert len(windows) == 5
    assert all(window in cut for window in windows)


def test_standard_windows_are_the_text_cut_from_its_start(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = ["", " = A title = \n", "", "the quick brown fox jumps over the lazy dog"]
    row = bare(tokenizer, "\n\n = A title = \n\n\n\n\nthe quick brown fox jumps over the lazy dog")
    cut = [row[i : i + 7] for i in range(0, len(row) - 6, 7)]
    for count in (0, 2, 99):
        windows, _ = encoding.standard_windows(tokenizer, documents, 7, count)
        assert windows.tolist() == (cut[:count] if count else cut)


def test_bytes_are_those_of_the_predicted_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "the fox ö ü \U0001f600 and a dog, ä " * 3
    ids = bare(tokenizer, text)
    windows, sizes = encoding.standard_windows(tokenizer, [text], len(ids), 0)
    assert sizes is not None
    first = len(str(tokenizer.decode(ids[:1])).encode())
    assert sizes.tolist() == [len(text.encode()) - first]
    windows, sizes = encoding.standard_windows(tokenizer, ["the fox and a dog " * 4], 5, 0)
    assert sizes is not None
    decoded = [len(str(tokenizer.decode(w[1:])).encode()) for w in windows]  # ASCII: no token is part of a character
    assert sizes.tolist() == decoded


def test_special_tokens_of_the_tokenizer_take_no_bytes(tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    ids = bare(tokenizer, "the fox")
    windows, sizes = encoding.standard_windows(own, ["the fox"], len(ids) + 2, 0)
    assert windows.tolist() == [[0, *ids, 1]]
    assert sizes is not None
    assert sizes.tolist() == [len("the fox")]


@pytest.mark.parametrize(
    ("documents", "what"),
    [([], "no text"), (["", " \n"], "no text"), (["the fox"], r"\d tokens, less than one window of 99")],
)
def test_too_little_text(tokenizer: PreTrainedTokenizerFast, documents: list[str], what: str) -> None:
    for call in (
        lambda: encoding.joined_windows(tokenizer, documents, 99, 3, 0),
        lambda: encoding.standard_windows(tokenizer, documents, 99, 3),
    ):
        with pytest.raises(BadData, match=f"^holds {what}; give a longer text or lower length$"):
            call()


# -- answers -----------------------------------------------------------------------------------------------------


def test_only_the_response_is_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = encoding.answers(tokenizer, [Answer("Add 1 2", "the fox", True), Answer("Q: ", "A", False)], 99)
    batch = examples.batch([0, 1])
    prompt, response = bare(tokenizer, "### Instruction:\nAdd 1 2\n\n### Response:\n"), bare(tokenizer, "the fox")
    assert batch["input_ids"][0].tolist() == [0, *prompt, *response, 1]
    assert batch["labels"][0].tolist() == [-100] * (1 + len(prompt)) + [*response, 1]
    short = [0, *bare(tokenizer, "Q: "), *bare(tokenizer, "A"), 1]
    assert batch["input_ids"][1, : len(short)].tolist() == short
    assert batch["labels"][1].tolist() == [-100] * (len(short) - 2) + short[-2:] + [-100] * (
        batch["labels"].shape[1] - len(short)
    )


def test_a_plain_prompt_is_set_off_by_a_line_only_where_nothing_sets_it_off(tokenizer: PreTrainedTokenizerFast) -> None:
    for prompt, response, whole in (("Q?", "A", "Q?\nA"), ("Q: ", "A", "Q: A"), ("Q?", " A", "Q? A")):
        examples = encoding.answers(tokenizer, [Answer(prompt, response, False)], 99)
        assert tokenizer.decode(examples.batch([0])["input_ids"][0]) == f"<s>{whole}</s>"


def test_a_chat_template_sets_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}bot: "
    batch = encoding.answers(own, [Answer("Add", "3", True)], 99).batch([0])
    assert tokenizer.decode(batch["input_ids"][0]) == "<s>user: Add\nbot: 3</s>"
    assert tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0]) == "3</s>"


def test_what_is_too_long_loses_its_end_or_is_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [Answer("a ", "b" * 9, False), Answer("a" * 20 + " ", "b", False)]
    examples = encoding.answers(tokenizer, rows, 6)
    assert (len(examples), examples.left_out) == (1, 1)
    assert examples.lengths.tolist() == [6]
    assert examples.batch([0])["labels"][0, -1] == bare(tokenizer, "b")[0]
    with pytest.raises(BadData, match="no prompt leaves room for its response in 6 tokens"):
        encoding.answers(tokenizer, rows[1:], 6)


def test_a_response_begins_at_the_first_token_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = bare(tokenizer, "the quick")
    ids, start = encode_answer(tokenizer, "the qu", "ick")
    assert ids == [0, *whole]
    assert bare(tokenizer, "the qu") != whole[: len(bare(tokenizer, "the qu"))]  # the two melt into one token
    assert tokenizer.decode(ids[start:]) == " quick"
    ids, start = encode_answer(tokenizer, "the", " quick")
    assert (ids, tokenizer.decode(ids[start:])) == ([0, *whole], " quick")


def test_the_right_choice_is_learnt() -> None:
    assert encoding.right_answer(Question("Q:", ("x", "y"), 1)) == Answer("Q:", " y", False)


# -- sentences ---------------------------------------------------------------------------------------------------


def test_sentences_and_pairs(pairing: PreTrainedTokenizerFast) -> None:
    single = encoding.sentences(pairing, [Sentences("a b", None), Sentences("c", None)], 9, torch.tensor([1, 0]))
    assert single.batch([0, 1])["input_ids"].tolist() == [[1, 4, 5, 2], [1, 6, 2, 0]]
    assert single.batch([1])["labels"].tolist() == [0]
    pairs = encoding.sentences(pairing, [Sentences("a b", "c"), Sentences("d", "a b c")], 6, None)
    batch = pairs.batch([0, 1])
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2, 6, 2], [1, 7, 2, 4, 5, 2]]  # the longer one is cut
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert "labels" not in batch


def test_a_pad_token_is_always_found(tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tokenizer)
    own.pad_token = None
    rows = [Answer("a ", "b", False), Answer("a ", "b b b", False)]
    assert encoding.answers(own, rows, 99).batch([0, 1])["input_ids"][0, -1] == 1
    own.eos_token = None
    own.add_special_tokens({"additional_special_tokens": [AddedToken("<x>")]})
    assert encoding.answers(own, rows, 99).batch([0, 1])["input_ids"][0, -1] == 0
