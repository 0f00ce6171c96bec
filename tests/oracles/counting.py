"""The counting programs, one statement at a time."""

from __future__ import annotations

import random

Statement = tuple[str, str]  # operation and variable; a pass has no variable
TEXT = {"set": ("{} = 0 ;", 4), "pass": ("pass;", 1), "increment": ("{} ++;", 2)}


def generate(
    rng: random.Random, variables: int, fewest: int, most: int, weights: tuple[int, int, int] = (1, 50, 7)
) -> tuple[list[Statement], str, int]:
    """The statements of a program, the variable it prints, and the answer."""
    letters = "abcdefgh"[:variables]
    while True:
        steps = rng.randint(fewest, most)
        values: dict[str, int] = {}
        statements = []
        while len(statements) < steps:
            operation = rng.choices(("set", "pass", "increment"), weights)[0]
            if operation == "set":
                variable = rng.choice(letters)
                values[variable] = 0
                statements.append((operation, variable))
            elif operation == "pass":
                statements.append((operation, ""))
            else:
                if not values:
                    continue
                variable = rng.choice(list(values))
                if values[variable] == 10:
                    continue
                values[variable] += 1
                statements.append((operation, variable))
        if values:
            printed = rng.choice(list(values))
            return statements, printed, values[printed]


def words(statements: list[Statement], printed: str, answer: int) -> list[str]:
    """A program as the words that are its tokens."""
    text = " ".join(TEXT[operation][0].format(variable) for operation, variable in statements)
    return f"{text} print {printed} {answer}".split()


def parse(words: list[str]) -> tuple[list[Statement], str, int]:
    """Statements, printed variable and answer. Raises ValueError for what is no program, or a wrong answer."""
    statements: list[Statement] = []
    values: dict[str, int] = {}
    place = 0
    while place < len(words) and words[place] != "print":
        if words[place] == "pass;":
            statements.append(("pass", ""))
            place += 1
        elif words[place + 1 : place + 4] == ["=", "0", ";"]:
            values[words[place]] = 0
            statements.append(("set", words[place]))
            place += 4
        elif words[place + 1 : place + 2] == ["++;"]:
            if words[place] not in values:
                raise ValueError("an increment of a variable that was never set")
            values[words[place]] += 1
            if values[words[place]] > 10:
                raise ValueError("a value above 10")
            statements.append(("increment", words[place]))
            place += 2
        else:
            raise ValueError(f"no statement begins with {words[place]!r}")
    if len(words) != place + 3:
        raise ValueError("does not end with print, a variable and an answer")
    printed, answer = words[place + 1], int(words[place + 2])
    if printed not in values:
        raise ValueError("prints a variable that was never set")
    if values[printed] != answer:
        raise ValueError("the answer is wrong")
    return statements, printed, answer
