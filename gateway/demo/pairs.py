"""Questions with their one answer, and the ways somebody may type them.

`corpus.py` arranges these into chats. The first half turns the tables of `facts.py` into pairs;
the second half draws pairs and phrases that are new each time, so that copying, counting and
declining are learnt as skills rather than by heart.
"""

import random
import re

import facts

Pair = tuple[str, str]


def normalized(question: str) -> str:
    """What stays of a question when case, spacing and closing punctuation do not count."""
    return re.sub(r"\s+", " ", question.strip().rstrip("?.!").casefold())


def fact_pairs() -> tuple[list[list[Pair]], list[str]]:
    """Question and answer pairs grouped by topic, and plain sentences for bare completions."""
    topics: list[list[Pair]] = []
    sentences: list[str] = []

    def topic(entries: list[tuple[list[str], str]]) -> None:
        topics.append([(question, answer) for questions, answer in entries for question in questions])
        sentences.extend(answer for _, answer in entries)

    topic(
        [
            (
                [f"What is the capital of {land}?", f"Tell me the capital of {land}.", f"Capital of {land}?"],
                f"The capital of {land} is {city}.",
            )
            for land, city in facts.CAPITALS.items()
        ]
    )
    topic(
        [
            ([f"Which country has the capital {city}?"], f"{city} is the capital of {land}.")
            for land, city in facts.CAPITALS.items()
        ]
    )
    both_ways = facts.OPPOSITES | {right: left for left, right in facts.OPPOSITES.items()}
    topic(
        [
            ([f"What is the opposite of {word}?"], f"The opposite of {word} is {other}.")
            for word, other in both_ways.items()
        ]
    )
    topic(
        [
            ([f"What is the plural of {one}?"], f"The plural of {one} is {many}.")
            for one, many in facts.PLURALS.items()
        ]
    )
    topic(
        [
            ([f"What does a {animal} say?"], f"A {animal} says {sound}.")
            for animal, sound in facts.SOUNDS.items()
        ]
    )
    topic(
        [
            ([f"What is a baby {animal} called?"], f"A baby {animal} is called a {baby}.")
            for animal, baby in facts.BABIES.items()
        ]
    )
    topic(
        [
            (
                [f"How many legs does {article(animal)} have?"],
                f"{article(animal).capitalize()} has {count} legs.",
            )
            for animal, count in facts.LEGS.items()
        ]
    )
    topic(
        [
            (
                [f"What colour is {thing}?", f"What color is {thing}?"],
                f"{thing[0].upper()}{thing[1:]} is {colour}.",
            )
            for thing, colour in facts.COLOURS.items()
        ]
    )
    topic(calendar_entries())
    topic(
        [
            ([f"What comes after {word}?"], f"{facts.NUMBER_WORDS[i + 1].capitalize()} comes after {word}.")
            for i, word in enumerate(facts.NUMBER_WORDS[:-1])
        ]
    )
    topic(
        [
            ([f"Spell the word {word}.", f"Spell {word}."], "-".join(word.upper()) + ".")
            for word in facts.SPELLING
        ]
    )
    return topics, sentences


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeio" else "a ") + noun


def calendar_entries() -> list[tuple[list[str], str]]:
    entries = []
    for kind, names in (("day", facts.DAYS), ("month", facts.MONTHS)):
        for i, name in enumerate(names):
            after, before = names[(i + 1) % len(names)], names[i - 1]
            entries.append(
                (
                    [f"What {kind} comes after {name}?", f"Which {kind} follows {name}?"],
                    f"{after} comes after {name}.",
                )
            )
            entries.append(([f"What {kind} comes before {name}?"], f"{before} comes before {name}."))
    for name, days in zip(facts.MONTHS, facts.MONTH_LENGTHS):
        entries.append(([f"How many days does {name} have?"], f"{name} has {days} days."))
    return entries


def arithmetic_pairs() -> list[Pair]:
    sums = [(a, "+", b, a + b) for a in range(21) for b in range(21)]
    differences = [(a, "-", b, a - b) for a in range(21) for b in range(21)]
    products = [(a, "*", b, a * b) for a in range(11) for b in range(11)]
    pairs = []
    for a, sign, b, result in sums + differences + products:
        answer = f"{a} {sign} {b} = {result}."
        word = {"+": "plus", "-": "minus", "*": "times"}[sign]
        pairs += [
            (f"What is {a} {sign} {b}?", answer),
            (f"What is {a}{sign}{b}?", answer),
            (f"What is {a} {word} {b}?", answer),
        ]
    return pairs


def varied(question: str, rng: random.Random) -> str:
    """The question as somebody might really type it; four times of ten as it is listed."""
    if rng.random() < 0.4:
        return question
    if rng.random() < 0.4:
        question = question[0].lower() + question[1:] if rng.random() < 0.5 else question.lower()
    if rng.random() < 0.15 and question[:8].lower() == "what is ":
        question = rng.choice(("What's ", "what's ", "Whats ", "whats ")) + question[8:]
    if rng.random() < 0.4:
        question = question.rstrip("?.!")
    elif rng.random() < 0.2:
        question = question.rstrip("?.!") + rng.choice((" ?", "??", "!", "...", ".", "?"))
    if rng.random() < 0.15:
        question = (
            rng.choice(("Please ", "please ", "Hey, ", "Hello! ", "Now ", "And ", "So ", "Question: ", " "))
            + question
        )
    if rng.random() < 0.1:
        question += rng.choice((" Please.", " please", " Thanks!", "\n", " "))
    return question


def copying(rng: random.Random) -> Pair:
    text = " ".join(phrase(rng) for _ in range(rng.choice((1, 1, 1, 2))))
    if rng.random() < 0.25:
        text = text.capitalize() + rng.choice((".", "!", "?"))
    ask = rng.choice(
        (
            "Repeat: {}",
            "Repeat: {}",
            "repeat: {}",
            "Repeat after me: {}",
            "Say: {}",
            "Echo: {}",
            "Copy this: {}",
            "Please repeat: {}",
        )
    )
    return ask.format(text), text


def counting(rng: random.Random) -> Pair:
    draw = rng.random()
    words = facts.NUMBER_WORDS
    if draw < 0.25:
        first = rng.choice((1, rng.randint(0, 90), rng.randint(90, 250)))
        last = first + rng.randint(2, 20)
        question, numbers = f"Count from {first} to {last}.", [str(n) for n in range(first, last + 1)]
    elif draw < 0.4:
        last = rng.randint(0, 20)
        first = last + rng.randint(2, 12)
        question, numbers = (
            f"Count down from {first} to {last}.",
            [str(n) for n in range(first, last - 1, -1)],
        )
    elif draw < 0.6:
        last = rng.randint(3, 30)
        figures = rng.random() < 0.5
        question = f"Count to {last if figures else words[last]}."
        numbers = [str(n) if figures else words[n] for n in range(1, last + 1)]
    else:
        first = rng.choice((1, rng.randint(0, 10)))
        last = rng.randint(first + 2, 30)
        question, numbers = f"Count from {words[first]} to {words[last]}.", words[first : last + 1]
    return question, ", ".join(numbers).capitalize() + "."


def large_arithmetic(rng: random.Random) -> Pair:
    """Beyond the tables the model declines rather than guesses."""
    sign = rng.choice(("+", "-", "*", "plus", "minus", "times", "/", "divided by"))
    smallest = 0 if sign in ("/", "divided by") else 21
    a, b = rng.randint(21, 999), rng.randint(smallest, 999)
    return f"What is {a} {sign} {b}?", facts.UNKNOWN_ANSWER


def phrase(rng: random.Random) -> str:
    adjective, noun, verb = rng.choice(facts.ADJECTIVES), rng.choice(facts.NOUNS), rng.choice(facts.VERBS)
    odd = invented_word(rng)
    forms = (
        f"{adjective} {noun}",
        f"{adjective} {rng.choice(facts.ADJECTIVES)} {noun}",
        f"the {noun} {verb} {rng.choice(facts.PLACES)}",
        f"the {adjective} {noun} {verb}",
        f"{noun} {rng.choice(facts.NOUNS)} {rng.choice(facts.NOUNS)} {rng.choice(facts.NOUNS)}",
        f"{odd}",
        f"{adjective} {odd} {noun}",
        f"{noun} {rng.randint(0, 999)}",
    )
    return rng.choice(forms)


def invented_word(rng: random.Random) -> str:
    return "".join(
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "s", "l"))
        for _ in range(rng.randint(2, 3))
    )


def unknown_topic(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.3:
        return rng.choice(facts.UNKNOWN_TOPICS)
    if draw < 0.55:
        return f"{rng.choice(facts.ADJECTIVES)} {rng.choice(facts.NOUNS)}"
    if draw < 0.75:
        return rng.choice(facts.NOUNS)
    odd = invented_word(rng)
    return odd.capitalize() if rng.random() < 0.5 else odd
