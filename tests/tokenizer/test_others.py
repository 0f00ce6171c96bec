"""Other people's tokenizers, made small here: what each id stands for, nothing added, and what they lose."""

from __future__ import annotations

import base64
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")
pytest.importorskip("tiktoken")
import sentencepiece
import tiktoken
import tokenizers

from lcbench.corpus.documents import Unwatched, text_of, tokens_of
from lcbench.corpus.text_files import TextFiles
from lcbench.errors import ConfigurationError
from lcbench.task.language_modelling import LanguageModelling
from lcbench.tokenizer.base import Tokenizer
from lcbench.tokenizer.huggingface import HuggingFace
from lcbench.tokenizer.sentencepiece import SentencePiece
from lcbench.tokenizer.tiktoken import _LISTS, _SAME, _SHARED, Tiktoken

TEXTS = [
    "The cat sat on the mat, the hat of the cat said Grüße to the 世界.",
    "  leading spaces,\n\n\tlines   and trailing \n",
    "<s> a special token's name is text </s> <|endoftext|> <unk>",
    "the the the \u2581 THE \ufb01ne \U0001f642 \x00\x7f",
    "x",
]


def byte_level(folder: Path) -> HuggingFace:
    """As GPT-2's and Llama 3's: byte pairs over bytes, a space in front by default."""
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    found.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(TEXTS * 3, trainer)
    found.enable_truncation(4)
    found.post_processor = tokenizers.processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    found.save(str(folder / "tokenizer.json"))
    return HuggingFace(name=str(folder))


def llama(folder: Path) -> HuggingFace:
    """As Llama 2's: a space in front, spaces as marks, a byte for what it does not know."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"aehlnorstT"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁")]
    vocabulary = {word: number for number, word in enumerate([*words, *("".join(pair) for pair in merges)])}
    found = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)])
    found.add_special_tokens(["<s>", "</s>", "<unk>"])
    found.save(str(folder / "tokenizer.json"))
    return HuggingFace(name=str(folder / "tokenizer.json"))


def ranks(folder: Path) -> Tiktoken:
    tokens = [*(bytes([byte]) for byte in range(256)), b"th", b"he", b" the", b"the", "世".encode()]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    (folder / "small.tiktoken").write_text("".join(lines))
    return Tiktoken(name=str(folder / "small.tiktoken"))


def pieces(folder: Path, **options: Any) -> SentencePiece:
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS[:2] * 20),
            model_writer=file,
            vocab_size=300,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            minloglevel=2,
        )
    return SentencePiece(path=str(folder / "tokenizer.model"), **options)


Make = Callable[[Path], Tokenizer]


@pytest.mark.parametrize("make", [byte_level, llama, ranks, pieces])
def test_every_id_stands_for_bytes_and_nothing_is_added(make: Make, tmp_path: Path) -> None:
    found = make(tmp_path)
    for text in (*TEXTS, ""):
        # what stands for a space in a file is lost in a text: of these two it becomes one
        text = text.replace("▁", "") if make in (llama, pieces) else text
        ids = found.encode(text)
        assert ids.dtype == np.int64
        assert found.to_bytes(ids) == text.encode()
        assert found.decode(ids) == text
        assert found.byte_lengths[ids].sum() == len(text.encode())
        assert (found.byte_lengths[ids] > 0).all()
        assert len(ids) <= len(text.encode())
        again, ends = found.aligned(text)
        assert again.tolist() == ids.tolist()
        assert len(ends) == len(ids)
        assert not len(ends) or ends[-1] == len(text.encode())
        assert (np.diff(ends) >= 0).all()
    assert len(found.vocabulary) == len(found.byte_lengths) == len(list(found.vocabulary))
    # shortened, and by the pairs that it was made with
    assert len(found.encode("the the the the")) < 12


@pytest.mark.parametrize(("make", "token"), [(byte_level, "<|endoftext|>"), (llama, "<s>"), (pieces, "<s>")])
def test_the_token_that_begins_is_in_no_text(make: Make, token: str, tmp_path: Path) -> None:
    found = make(tmp_path)
    assert found.begin is not None
    assert found.begin not in {int(i) for text in TEXTS for i in found.encode(text)}
    assert found.byte_lengths[found.begin] == 0
    corpus = corpus_of(tmp_path / "texts", [f"{text} {n}" for n in range(3) for text in TEXTS[:2]])
    task = LanguageModelling(corpus, found, length=4, begin=True)
    assert task.begin == found.begin
    assert len(task.vocabulary) == len(found.vocabulary)


def corpus_of(folder: Path, texts: list[str]) -> TextFiles:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)
    return TextFiles(path=str(folder), split="documents", validation=0.3, test=0.3)


def small_letters(folder: Path) -> Path:
    """As BERT's: small letters, white space dropped, whole words or unknown."""
    words = ["[UNK]", "[CLS]", "the", "cat", "sat", "on", "mat", ",", ".", "##s"]
    model = tokenizers.models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    found = tokenizers.Tokenizer(model)
    found.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    found.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    found.add_special_tokens(["[UNK]", "[CLS]"])
    found.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_a_tokenizer_that_loses_something_is_refused(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "texts", ["the cats", "the  cat", "The cat sat Grüße on the mats.  "])
    with pytest.raises(ConfigurationError, match=r"it loses text: of 00.txt .*'the cats'.*tokenizer.lossy=count"):
        tokens_of(corpus, HuggingFace(name=str(small_letters(tmp_path))), Unwatched())


def test_what_it_loses_is_scored_by_the_bytes_of_the_original(tmp_path: Path) -> None:
    texts = ["the cats", " the  cat ", "The cat sat Grüße on the mats.  \n", "ünknown 世界 words, the cat"] * 2
    texts = [f"{text}{' the' * n}" for n, text in enumerate(texts)]
    corpus = corpus_of(tmp_path / "texts", texts)
    found = HuggingFace(name=str(small_letters(tmp_path)), lossy="count")
    documents = tokens_of(corpus, found, Unwatched())
    assert documents.about["unknown_tokens"] == 10
    assert documents.about["pieces_not_restored"] == 8
    task = LanguageModelling(corpus, found, length=3, begin=True, max_document=None)
    for part in ("", "test_"):
        rows = task.rows(f"{part}non_overlapping", 1000, 0)
        batch = rows.take(0, len(rows))
        numbers = task.numbers("test" if part else "validation")
        originals = [text_of(corpus, Unwatched()).of(int(n)).tobytes() for n in numbers]
        # with a token before it, all of a document is scored: every byte and word once
        assert int(batch.facts["bytes"].sum()) == sum(map(len, originals))
        assert int(batch.facts["words"].sum()) == sum(len(text.split()) for text in originals)


def test_nfkc_of_sentencepiece_is_found_out(tmp_path: Path) -> None:
    found = pieces(tmp_path)
    corpus = corpus_of(tmp_path / "texts", [f"{text}{n}" for n, text in enumerate([*TEXTS[:3], "a\u2581b"])])
    with pytest.raises(ConfigurationError, match=r"it loses text: of 03.txt"):
        tokens_of(corpus, found, Unwatched())
    counted = tokens_of(corpus, SentencePiece(path=str(tmp_path / "tokenizer.model"), lossy="count"), Unwatched())
    assert counted.about["pieces_not_restored"] == 1
    text = text_of(corpus, Unwatched())
    for document in range(len(text)):
        before, whole = counted.original(document, 0, int(counted.lengths[document]))
        assert (before, whole) == (b"", text.of(document).tobytes())


def test_a_changed_file_is_another_tokenizer(tmp_path: Path) -> None:
    first = ranks(tmp_path)
    with (tmp_path / "small.tiktoken").open("a") as file:
        file.write(f"{base64.b64encode(b'cat').decode()} 261\n")
    second = Tiktoken(name=str(tmp_path / "small.tiktoken"))
    assert second.identity != first.identity
    assert len(second.vocabulary) == 262
    small = HuggingFace(name=str(small_letters(tmp_path)))
    assert small.identity != HuggingFace(name=str(small_letters(tmp_path)), lossy="count").identity


def test_ids_of_each_size_fit(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "texts", ["the cat", "the hat", "a mat"])
    assert tokens_of(corpus, ranks(tmp_path), Unwatched()).tokens.dtype == np.uint16


class TooFar(Tiktoken):
    """Its ids go beyond its names."""

    def encode(self, text: str) -> np.ndarray:
        return super().encode(text) + 10**6


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    ranks(tmp_path)
    corpus = corpus_of(tmp_path / "texts", ["the cat", "the hat", "another mat"])
    with pytest.raises(ConfigurationError, match=r"it made id 1000\d+, and its vocabulary ends with 260"):
        tokens_of(corpus, TooFar(name=str(tmp_path / "small.tiktoken")), Unwatched())


def test_where_lists_are_from_is_what_tiktoken_says() -> None:
    public = pytest.importorskip("tiktoken_ext.openai_public")
    source = inspect.getsource(public)
    for name in set(tiktoken.list_encoding_names()) - set(_SAME):
        address = f"{_LISTS}/{_SHARED.get(name, name)}.tiktoken"
        assert re.search(rf"def {name}\(.*?{re.escape(address)}", source, re.DOTALL) or name in _SHARED
        assert address in source


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda here: Tiktoken(name="cl100k_bas"), r"tokenizer.name=cl100k_bas: .* the closest is cl100k_base"),
        (
            lambda here: Tiktoken(name="cl100k_base"),
            r"save https://openaipublic.*/cl100k_base.tiktoken as {here}/9b5ad71b2ce5302211f9c61530b329a4922fc6a4 ",
        ),
        (lambda here: Tiktoken(name=str(here / "a.txt")), r"tokenizer.name={here}/a.txt is no list of byte pairs"),
        (lambda here: HuggingFace(name="gpt2"), r"https://huggingface.co/gpt2 into {here}/cache/tokenizers/gpt2\."),
        (lambda here: HuggingFace(name="OWNER/x"), r"download tokenizer.json of .* into {here}/.*/OWNER--x\."),
        (lambda here: HuggingFace(name=str(here / "a.txt")), r"{here}/a.txt is no tokenizer"),
        (
            lambda here: HuggingFace(name=str(here)),
            r"has no tokenizer.json; .* tokenizer=sentencepiece tokenizer.path={here}/tokenizer.model",
        ),
        (lambda here: SentencePiece(path=str(here / "a.txt")), r"a.txt is no SentencePiece model"),
        (lambda here: SentencePiece(path=str(here / "none")), r"none is no SentencePiece model: .*No such file"),
    ],
)
def test_mistakes_are_named(
    make: Callable[[Path], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("LCBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("tiktoken.load.read_file", lambda path: (_ for _ in ()).throw(OSError("no network")))
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "tokenizer.model").write_text("abc")
    with pytest.raises(ConfigurationError, match=says.replace("{here}", str(tmp_path))) as error:
        make(tmp_path)
    assert "\n" not in str(error.value)
