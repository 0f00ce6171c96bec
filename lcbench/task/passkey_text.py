"""Passkey retrieval in text: the papers' own prompts, and RULER's needles, over bytes or any tokens.

``prompts`` has the prompt of Landmark Attention (Mohtashami and Jaggi, NeurIPS 2023, arXiv 2305.16300) with the
protocols of that paper, of LongLoRA and of Infini-attention; ``needles`` has RULER's eight needle tasks. An example::

    ... The sky is blue. The pass key is 9054. Remember it. 9054 is the pass key. The grass is green. ...
    What is the pass key? The pass key is| 9054

- ``landmark``: the model reads the prompt alone and generates greedily, up to 100 tokens as in the paper (10 in its
  script), or as many as a table of positions has places for, at least those of the answer. The first run of digits, as
  an integer, is the key or not, as the protocol has it. ``token_error``: of the key's tokens, those that do not stand
  in their place, where the key was to follow at once.

For the others the model also reads, one after another, the right tokens of the answer; each is predicted by the
highest score after the right ones before it (teacher forcing). What that says of a model that generates greedily:

- ``longlora``: an answer counts if all its tokens are right, the space included. This is the protocol's rule exactly.
- ``infini``: ``token_error`` is one minus the protocol's accuracy over the key's tokens, with the right tokens before
  each; the source does not say whether its own were generated or given.
- RULER: each value counts by itself, with the comma or space before it. Up to the first wrong value, generation says
  the same; behind it, the right values before are given. For single values ``error`` is an upper bound of one minus
  the protocol's score, for several ones an estimate.

Any text that was generated is scored by the functions in ``prompts``: ``landmark_correct``, ``longlora_correct``,
``infini_accuracy``, ``ruler_score``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lcbench.dataset.base import TRAIN, Batch
from lcbench.errors import ConfigurationError
from lcbench.lengths import parse_length
from lcbench.task.base import IN_DISTRIBUTION, NOT_SAID, Spoken, Task, refuse
from lcbench.task.cell import Cell, parse_cell
from lcbench.task.needles import RULER, read_needles
from lcbench.task.place import by_place
from lcbench.task.prompts import PASSKEYS, STOP, Prompt, PromptFamily, landmark_correct, pieces, read_passkey
from lcbench.task.tally import Outcomes, Tally
from lcbench.tokenizer.base import Tokenizer
from lcbench.tokenizer.bytes import Bytes
from lcbench.units import Length

#: tokens that a model says where the landmark protocol scores it
SAID = 100

FAMILIES: dict[str, PromptFamily[Any]] = {**PASSKEYS, **RULER}
#: a run of digits and what ends it
_ENDED = re.compile(r"[0-9][^0-9]")
_FILLER = re.compile(r"(?P<family>landmark|longlora)_filler_(?P<characters>\d+[kM]?)")


class PasskeyText(Task):
    """Answer with the key, or the values, that the text states.

    Evaluation sets are cells of a grid (``lcbench.task.cell``) with a protocol in front, training's if there is none:
    ``in_distribution``; ``length_4k_depth_50``; ``infini_length_32k_depth_0``; ``niah_multikey_1_length_8k``. There
    the haystack is as large as lets prompt and answer fit: exactly the length for ``landmark`` and ``longlora`` over
    bytes, else up to one unit less (a filler unit, a needle, a word). ``landmark_filler_5k`` and
    ``longlora_filler_29696`` have so many characters of filler instead, as in the papers. With ``depth``, the fact
    (the first needle asked for) stands there, in percent; further needles asked for stand behind it.

    Metrics: ``error``, wrong keys or values over all that are asked; ``token_error``, their wrong tokens (digits, or
    letters), without spaces, commas and what ends the answer; with several answers ``sequence_error``, examples with a
    wrong one; ``error/depth_0_19`` and ``error/distance_64_127``, by depth and by characters between the (first) fact
    and the question.

    Args:
        tokenizer: reads the text; bytes if None.
        length: tokens of the longest training example, answer included.
        min_length: tokens of the shortest; lengths are uniform between the two. None: half of ``length``, or what the
            prompt needs.
        protocol: of the training examples.
        loss: trains on the ``answer`` alone, or on ``everything``: each next token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        *,
        length: Length = 512,
        min_length: Length | None = None,
        protocol: Literal[
            "landmark",
            "longlora",
            "infini",
            "niah_single_1",
            "niah_single_2",
            "niah_single_3",
            "niah_multikey_1",
            "niah_multikey_2",
            "niah_multikey_3",
            "niah_multivalue",
            "niah_multiquery",
        ] = "landmark",
        loss: Literal["answer", "everything"] = "answer",
    ) -> None:
        self.tokenizer = Bytes() if tokenizer is None else tokenizer
        self.vocabulary = self.tokenizer.vocabulary
        self.protocol = protocol
        self.loss = loss
        self.length = length
        least = self._least(protocol)
        self._check_length("task.length", length, protocol)
        self.min_length = max(length // 2, least) if min_length is None else min_length
        self._check_length("task.min_length", self.min_length, protocol)
        if self.min_length > length:
            raise refuse("task.min_length", self.min_length, f"is above task.length={length}", length)
        error = 1 - 1 / FAMILIES[protocol].choices(length)
        self.chance = {"error": error}
        self.evaluation_sets = (IN_DISTRIBUTION, *(f"length_2x_depth_{depth}" for depth in (0, 50, 100)))
        starts_with_digit = [symbol[:1] in set("0123456789") for symbol in self.vocabulary]
        says_something = [any(c.isascii() and c.isalnum() for c in symbol) for symbol in self.vocabulary]
        self._digit, self._something = torch.tensor(starts_with_digit), torch.tensor(says_something)
        self._comma, self._stop = (int(self.tokenizer.encode(mark)[0]) for mark in (",", STOP))

    def token_length(self, evaluation_set: str) -> int:
        cell, filler = self._cell(evaluation_set)
        if filler is None:
            return cell.length or self.length
        family = FAMILIES[cell.base]
        return len(_text(family.write(family.longest(), filler)).encode())

    def at(self, evaluation_set: str, length: int) -> str:
        cell, _ = self._cell(evaluation_set)
        at = Cell(cell.base, length, cell.depth).name
        self.token_length(at)
        return at

    def sample(self, rng: np.random.Generator, n: int, evaluation_set: str) -> Batch:
        cell, filler = self._cell(evaluation_set)
        family = FAMILIES[cell.base or self.protocol]
        prompts, strings, starts = [], [], []
        for _ in range(n):
            if filler is not None:
                prompt = family.write(family.draw(rng, cell.depth, 0), filler)
            else:
                length = cell.length or int(rng.integers(self.min_length, self.length, endpoint=True))
                prompt = self._fitted(rng, family, cell.depth, length, evaluation_set)
            asked = self.tokenizer.encode(prompt.text)
            prompts.append(prompt)
            strings.append(np.concatenate([asked, *map(self.tokenizer.encode, prompt.pieces)]))
            starts.append(len(asked))

        lengths = np.array([len(string) for string in strings])
        rows = np.zeros((n, lengths.max()), np.int64)
        for row, string in zip(rows, strings, strict=True):
            row[: len(string)] = string
        time = np.arange(rows.shape[1] - 1)
        padding = torch.from_numpy(time >= lengths[:, None] - 1)  # [n, time]
        scored = torch.from_numpy(time >= np.array(starts)[:, None] - 1) & ~padding
        tokens = torch.from_numpy(rows)
        return Batch(
            tokens=tokens[:, :-1],
            targets=tokens[:, 1:],
            scored=scored,
            supervised=scored if self.loss == "answer" else ~padding,
            padding=padding if lengths.min() < rows.shape[1] else None,
            facts={
                "length": torch.from_numpy(lengths),
                "depth": torch.tensor([prompt.depth for prompt in prompts]),
                "distance": torch.tensor([prompt.distance for prompt in prompts]),
            },
        )

    def _fitted(
        self, rng: np.random.Generator, family: PromptFamily[Any], depth: int | None, length: int, where: str
    ) -> Prompt:
        """A prompt with as much haystack as fits ``length`` tokens, answer included."""
        characters = int(length * self._characters_a_token(family))
        drawn = family.draw(rng, depth, characters)

        def tokens(size: int) -> int:
            prompt = family.write(drawn, size)
            return sum(len(self.tokenizer.encode(text)) for text in (prompt.text, *prompt.pieces))

        size = largest(tokens, length, family.most(characters))
        if size is None:
            raise ConfigurationError(
                f"evaluation set {where}: a prompt without any haystack has {tokens(0)} tokens and would be cut at "
                f"{length}; the closest length that works is {tokens(0)}."
            )
        return family.write(drawn, size)

    def _characters_a_token(self, family: PromptFamily[Any]) -> float:
        """More than there are on average; exact where each character is a token."""
        text = _text(family.write(family.longest(), 0))
        characters = len(text) / len(self.tokenizer.encode(text))
        return characters if characters == 1 else 1.5 * characters

    def solve(self, tokens: Tensor) -> Tensor:
        solved = torch.zeros_like(tokens)
        for row, ids in enumerate(tokens.cpu().numpy()):
            text = self.tokenizer.decode(ids)
            read = read_needles(text) or read_passkey(text)
            if read is None:
                continue
            end, answers = read
            start = len(self.tokenizer.encode(text[:end])) - 1
            said = np.concatenate([self.tokenizer.encode(piece) for piece in pieces(answers, STOP)])
            room = tokens.shape[1] - start
            solved[row, start : start + len(said)] = torch.from_numpy(said[:room]).to(tokens.device)
        return solved

    def spoken(self, evaluation_set: str) -> Spoken | None:
        """See ``Task.spoken``: by the landmark protocol, until the first run of digits has ended."""
        cell, _ = self._cell(evaluation_set)
        return Spoken(SAID, self._settled) if (cell.base or self.protocol) == "landmark" else None

    def tally(self, evaluation_set: str) -> Tally:
        """See ``Task.tally``."""
        return Outcomes(self.outcomes if self.spoken(evaluation_set) is None else self.said_outcomes)

    def _settled(self, said: Tensor) -> Tensor:
        return torch.tensor([_ENDED.search(text) is not None for text in self._texts(said)], device=said.device)

    def _texts(self, said: Tensor) -> list[str]:
        """The text of each row of ids ``[batch, time]``, up to where nothing was said."""
        return [self.tokenizer.decode(row[row != NOT_SAID]) for row in said.cpu().numpy()]

    def said_outcomes(self, batch: Batch, said: Tensor) -> dict[str, Tensor]:
        """``outcomes`` of what the model said by itself, ids ``[batch, time]`` with ``NOT_SAID`` behind an end."""
        errors, wrong = [], []
        for row, text in enumerate(self._texts(said)):
            answer = batch.targets[row, batch.scored[row]]  # the space, the key, what ends it
            key = int(self.tokenizer.decode(answer.cpu().numpy()).strip().removesuffix(STOP))
            errors.append(not landmark_correct(text, key))
            place = torch.arange(len(answer), device=said.device)
            found = torch.where(place < said.shape[1], said[row, place.clamp(max=said.shape[1] - 1)], NOT_SAID)
            wrong.append((found != answer)[self._something.to(said.device)[answer]])
        error = torch.tensor(errors, device=said.device)
        split = by_place(error, batch.facts["depth"], batch.facts["distance"])
        return {"error": error, "token_error": torch.cat(wrong)} | split

    def outcomes(self, batch: Batch, predictions: Tensor) -> dict[str, Tensor]:
        row = batch.scored.nonzero()[:, 0]  # [scored], row by row
        targets, said = batch.targets[batch.scored], predictions[batch.scored]
        ends = targets == self._stop
        wrong = torch.where(ends, self._digit.to(said.device)[said], said != targets)
        # an answer begins with its row, or with a comma
        begins = (targets == self._comma) | (row != row.roll(1))
        begins[:1] = True
        owner = row[begins]  # [answers]
        errors = _any(wrong, begins.cumsum(0) - 1, len(owner))
        counted = {"error": errors, "token_error": wrong[self._something.to(said.device)[targets]]}
        if len(owner) > len(batch):
            counted["sequence_error"] = _any(wrong, row, len(batch))
        return counted | by_place(errors, batch.facts["depth"][owner], batch.facts["distance"][owner])

    @property
    def spelling(self) -> Tokenizer:
        """See ``Task.spelling``."""
        return self.tokenizer

    def describe(self, batch: Batch, row: int) -> str:
        """The prompt, ``->`` and what should follow it."""
        scored = batch.scored[row].nonzero()[:, 0]
        prompt = batch.tokens[row, : int(scored[0]) + 1]
        decode = self.tokenizer.decode
        return f"{decode(prompt.cpu().numpy())}->{decode(batch.targets[row, scored].cpu().numpy())}"

    def _cell(self, evaluation_set: str) -> tuple[Cell, int | None]:
        """The cell, whose base is a protocol or empty, and characters of filler where the name says so."""
        if evaluation_set == TRAIN:
            return Cell("", None, None), None
        cell = parse_cell(evaluation_set, self.length)
        if cell is not None and (match := _FILLER.fullmatch(cell.base)) and cell.length is None:
            return Cell(match["family"], None, cell.depth), parse_length(match["characters"])
        if cell is None or cell.base not in ("", *FAMILIES):
            families = [f"{family}_length_4k" for family in FAMILIES]
            known = [IN_DISTRIBUTION, "length_2x", "depth_50", "length_1k_depth_50", "landmark_filler_5k", *families]
            raise self.unknown_set(evaluation_set, known)
        family = cell.base or self.protocol
        least = self._least(family)
        if (cell.length or self.length) < least:
            closest = Cell(cell.base, least, cell.depth).name
            raise refuse("evaluation.sets", evaluation_set, f"is shorter than {self._needs(family)}", closest)
        return cell, None

    def _check_length(self, key: str, length: int, family: str) -> None:
        if length < self._least(family):
            raise refuse(key, length, f"is shorter than {self._needs(family)}", self._least(family))

    def _needs(self, family: str) -> str:
        return f"the {self._least(family)} tokens of a {family} prompt with its answer, which would be cut"

    def _least(self, family: str) -> int:
        """Tokens of the longest prompt without haystack."""
        made = FAMILIES[family]
        prompt = made.write(made.longest(), 0)
        return sum(len(self.tokenizer.encode(text)) for text in (prompt.text, *prompt.pieces))


def _text(prompt: Prompt) -> str:
    return prompt.text + "".join(prompt.pieces)


def _any(wrong: Tensor, group: Tensor, groups: int) -> Tensor:
    """Whether any of each group is wrong: bool ``[groups]``, from ``wrong`` and the number of its group ``[any]``."""
    return torch.zeros(groups, dtype=torch.int64, device=wrong.device).index_add_(0, group, wrong.long()) > 0


def largest(tokens: Callable[[int], int], limit: int, most: int) -> int | None:
    """The largest size up to ``most + 1`` with ``tokens(size) <= limit``, for counts that grow; None if there is none.

    Searches by interpolation, which is exact where the count is linear, and by halving in turn.
    """
    low, high = 0, most + 1
    at_low = tokens(low)
    if at_low > limit:
        return None
    at_high = tokens(high)
    if at_high <= limit:
        return high
    step = 0
    while high - low > 1:
        middle = (low + high) // 2 if step % 3 == 2 else low + (limit - at_low) * (high - low) // (at_high - at_low)
        middle = min(max(middle, low + 1), high - 1)
        if (there := tokens(middle)) <= limit:
            low, at_low = middle, there
        else:
            high, at_high = middle, there
        step += 1
    return low
