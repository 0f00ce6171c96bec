"""Tokens put into a task's batches that the task knows nothing of: landmarks, one after every b tokens.

With b = 2, a token's target in capitals, and a landmark #:

    tokens    a   b   #   c  ..          tokens    a   b   #   c  ..
    targets   A   B   .   C              targets   A   #   B   C            predicted: landmarks are part of the text
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from lcbench.dataset.base import Batch
from lcbench.errors import ConfigurationError


@dataclass(frozen=True)
class Insertion:
    """How landmarks are put into a batch, and taken out again.

    Args:
        block: b, tokens before each landmark.
        token: the landmark's id.
        predicted: whether the last token of a block is to predict the landmark, and the landmark what that token
            would have; otherwise landmarks are left out of targets.
    """

    block: int
    token: int
    predicted: bool

    def length(self, tokens: int) -> int:
        """Of so many tokens, landmarks included."""
        return tokens + tokens // self.block

    def insert(self, batch: Batch) -> Batch:
        """``batch`` with landmarks. A landmark is padding, and none, if what stands before it is.

        Raises:
            ConfigurationError: if a token of the batch has the landmark's id.
        """
        if bool((batch.tokens >= self.token).any()):
            raise ConfigurationError(
                f"dataset=landmark: no id is free for the landmark: the task draws token {int(batch.tokens.max())}, "
                f"and names {self.token} of them; take dataset=synthetic."
            )
        width = self.block + 1
        time = torch.arange(self.length(batch.tokens.shape[1]), device=batch.tokens.device)
        here = time % width == self.block  # [new time]
        source = time - time // width - here.long()
        wide = batch.map(lambda tensor: tensor[:, source] if tensor.dim() > 1 else tensor)
        # where the question of a token stands no longer
        moved = torch.cat([here[1:], here.new_zeros(1)]) if self.predicted else here
        supervised = wide.supervised if self.predicted else wide.supervised & ~here
        return dataclasses.replace(
            wide,
            tokens=wide.tokens.masked_fill(here, self.token),
            targets=wide.targets.masked_fill(moved, self.token),
            scored=wide.scored & ~moved,
            supervised=supervised,
            landmarks=here.expand_as(wide.tokens) if wide.padding is None else here & ~wide.padding,
        )

    def remove(self, batch: Batch) -> Batch:
        """The batch that ``insert`` was given."""
        tokens = self.at_tokens(batch.tokens)
        asked = batch.map(lambda tensor: self.at_questions(tensor) if tensor.dim() > 1 else tensor)
        padding = None if batch.padding is None else self.at_tokens(batch.padding)
        documents = None if batch.documents is None else self.at_tokens(batch.documents)
        return dataclasses.replace(asked, tokens=tokens, padding=padding, documents=documents, landmarks=None)

    def at_tokens(self, tensor: Tensor) -> Tensor:
        """``[batch, new time]`` without the landmarks' columns."""
        return tensor[:, self._places(tensor.shape[1])]

    def at_questions(self, tensor: Tensor) -> Tensor:
        """Targets, facts or answers ``[batch, new time]``, by the tokens after which they are asked for."""
        places = self._places(tensor.shape[1])
        if self.predicted:
            places = places + (places % (self.block + 1) == self.block - 1)
        return tensor[:, places]

    def _places(self, new_time: int) -> Tensor:
        time = torch.arange(new_time - new_time // (self.block + 1))
        return time + time // self.block
