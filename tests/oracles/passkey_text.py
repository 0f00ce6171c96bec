"""Checkers of passkey prompts and needle prompts, read part by part; the texts are typed out once more."""

from __future__ import annotations

UNIT = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def filler(characters: int) -> str:
    """The filler stream, one character at a time."""
    stream = UNIT + " "
    return "".join(stream[i % len(stream)] for i in range(characters))


def check_passkey(prompt: str, answer: str, smallest: int, largest: int, whole: bool = False) -> tuple[int, int]:
    """Raises ValueError where a prompt is not as defined; returns how much filler is before the fact and behind."""
    parts = prompt.split("\n")
    if len(parts) != 5:
        raise ValueError("not five parts")
    task, first, fact, second, question = parts
    if len(task) != 148 or task.count(".") != 3 or "irrelevant text" not in task:
        raise ValueError("the task is not the three sentences")
    if question != "What is the pass key? The pass key is":
        raise ValueError("the question is not the question, or a space follows it")
    words = fact.split(" ")
    if fact != f"The pass key is {words[4][:-1]}. Remember it. {words[4][:-1]} is the pass key.":
        raise ValueError("the fact does not state one key twice")
    key = words[4][:-1]
    if not key.isdigit() or key[0] == "0" or not smallest <= int(key) <= largest:
        raise ValueError("the key is out of range or begins with 0")
    if prompt.count(key) != 2 or sum(c.isdigit() for c in prompt) != 2 * len(key):
        raise ValueError("digits elsewhere than in the fact")
    for part in (first, second):
        if part != filler(len(part)):
            raise ValueError("the filler is not the stream from its beginning")
        if whole and len(part) and (len(part) + 1) % 90:
            raise ValueError("the filler is not in whole units")
    if answer != " " + key:
        raise ValueError("the answer is not the key")
    return len(first), len(second)


def check_needles(prompt: str, answers: list[str], kind: str, keys: int, values: int, queries: int) -> list[int]:
    """Raises ValueError where a needle prompt is not as defined; returns where its needles begin."""
    one = values * queries == 1
    singular = kind[:-1]
    head, _, rest = prompt.partition("\n")
    context, _, tail = rest.rpartition("\n")
    opening = f"A special magic {singular} is" if one else f"Some special magic {kind} are"
    if not head.startswith(f"{opening} hidden within") or not head.endswith(
        f"about the {singular if one else kind} afterwards."
    ):
        raise ValueError("the introduction is not the introduction")
    asks = f"What is the special magic {singular} for " if one else f"What are all the special magic {kind} for "
    middle = " mentioned in the provided text"
    if not tail.startswith(asks) or not tail.endswith(middle + (" is" if one else " are")):
        raise ValueError("the question is not the question")
    query = tail[len(asks) : tail.index(middle)]
    asked = query.replace(", and ", ", ").split(", ")
    if len(asked) != queries:
        raise ValueError("not as many keys are asked as should be")
    statement = f"One of the special magic {kind} for "
    said: dict[str, list[str]] = {}
    places = []
    place = context.find(statement)
    while place >= 0:
        sentence = context[place + len(statement) : context.index(".", place)]
        key, _, value = sentence.partition(" is: ")
        said.setdefault(key, []).append(value)
        places.append(place)
        place = context.find(statement, place + 1)
    if any(key not in said or len(said[key]) != values for key in asked) or len(said) < keys:
        raise ValueError("a key does not have its values")
    expected = [value for key in asked for value in said[key]]
    if answers != expected:
        raise ValueError("the answers are not what the needles say")
    if any(prompt.count(value) != 1 for value in expected):
        raise ValueError("a value stands elsewhere, too")
    return places
