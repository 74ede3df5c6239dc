"""Makes the training text of the demo model, endlessly and reproducibly.

`train.py` draws documents from `Corpus.document`; `tokenizer.py` learns its merges from
`Corpus.sample_text`. A document is a list of segments `(text, learn)`: the model is trained to
produce only the segments with `learn`, that is, assistant turns and plain sentences, never what
users write. All chance comes from the `random.Random` handed in, so a seed fixes the corpus.

Always holds: one question has one answer (`Corpus.__init__` raises otherwise), and every
control token in a segment is meant as one. What it does not do: tokenize, or check the model.
"""

import json
import random
import re
from pathlib import Path

import facts
import pairs
from pairs import (
    Pair,
    copying,
    counting,
    invented_word,
    large_arithmetic,
    normalized,
    phrase,
    unknown_topic,
    varied,
)

QUESTIONS_PATH = Path(__file__).parent / "questions.json"
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TOOL_PREAMBLE = "\n\nYou can call these tools:\n<tools>"
TOOL_CLOSING = (
    '\n</tools>\nTo call one, reply with <tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>'
)

Segment = tuple[str, bool]


class Corpus:
    """Draws training documents; see the module text."""

    def __init__(self) -> None:
        self.listed: list[Pair] = [
            (entry["question"], entry["answer"]) for entry in json.loads(QUESTIONS_PATH.read_text("utf-8"))
        ]
        self.taught: list[Pair] = self.listed + facts.TAUGHT_ONLY
        self.topics, self.sentences = pairs.fact_pairs()
        taught = dict(self.taught)
        self.topics.append(
            [(alias, taught[question]) for question, names in facts.ALIASES.items() for alias in names]
        )
        self.arithmetic = pairs.arithmetic_pairs()
        self.answers: dict[str, str] = {}
        for question, answer in (
            self.taught + self.arithmetic + [pair for topic in self.topics for pair in topic]
        ):
            known = self.answers.setdefault(normalized(question), answer)
            if known != answer:
                raise ValueError(f"question {question!r} has two answers: {known!r} and {answer!r}")
        # Long answers hold most of the tokens to learn, so they are drawn more often; the longest
        # would crowd out the rest.
        self.weights = [1.0 + (len(answer) / 100 if len(answer) < 600 else 1.0) for _, answer in self.taught]
        self.sentences += [answer for _, answer in self.taught if answer.endswith(".") and "\n" not in answer]
        self.passages = [f"{question} {answer}" for question, answer in self.taught] + self.sentences

    # Documents -----------------------------------------------------------------------------

    def document(self, rng: random.Random) -> list[Segment]:
        """One chat (82 %), tool chat (4 %) or run of plain sentences (14 %)."""
        draw = rng.random()
        if draw < 0.04:
            return self.tool_chat(rng)
        if draw < 0.18:
            return self.plain(rng)
        segments: list[Segment] = []
        if rng.random() < 0.35:
            segments += turn("system", self.system_message(rng), learn=False)
        chat = self.introduction(rng) if rng.random() < 0.06 else []
        chat += [self.exchange(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4)))]
        for question, answer in chat:
            segments += turn("user", question, learn=False) + turn("assistant", answer, learn=True)
        return segments

    def exchange(self, rng: random.Random) -> Pair:
        draw = rng.random()
        if draw < 0.52:
            question, answer = rng.choices(self.taught, self.weights)[0]
        elif draw < 0.68:
            question, answer = rng.choice(rng.choice(self.topics))
        elif draw < 0.76:
            question, answer = rng.choice(self.arithmetic)
        elif draw < 0.86:
            return copying(rng)
        elif draw < 0.91:
            question, answer = counting(rng)
        elif draw < 0.92:
            question, answer = large_arithmetic(rng)
        else:
            question, answer = self.unknown(rng)
        return varied(question, rng), answer

    def plain(self, rng: random.Random) -> list[Segment]:
        """Sentences as a completion prompt would start them; the first word is given, not learnt.
        They end with the model's one end token, so a bare completion stops by itself."""
        segments: list[Segment] = []
        for _ in range(rng.randint(1, 4)):
            text = rng.choice(self.passages)
            first, rest = text.split(" ", 1) if " " in text else (text, "")
            segments.append((first, False))
            segments.append((f" {rest}" if rest else "", True))
            segments.append((rng.choice((" ", "\n")), False))
        segments[-1] = (TURN_END, True)
        return segments

    def tool_chat(self, rng: random.Random) -> list[Segment]:
        """A chat in which the system message offers tools and the model calls one."""
        offered = rng.sample(list(TOOLS), rng.randint(1, len(TOOLS)))
        name = rng.choice(offered)
        place = (
            rng.choice(list(facts.CAPITALS.values()))
            if rng.random() < 0.7
            else invented_word(rng).capitalize()
        )
        question = rng.choice(TOOLS[name][1]).format(place)
        listing = "".join("\n" + tool_json(tool, rng) for tool in offered)
        call = json.dumps({"name": name, "arguments": {TOOLS[name][0]: place}}, ensure_ascii=False)
        segments = turn(
            "system", self.system_message(rng) + TOOL_PREAMBLE + listing + TOOL_CLOSING, learn=False
        )
        if rng.random() < 0.3:
            segments += turn("user", "Hello!", learn=False) + turn(
                "assistant", self.answers["hello"], learn=True
            )
        segments += turn("user", question, learn=False)
        segments += turn("assistant", f"<tool_call>\n{call}\n</tool_call>", learn=True)
        if rng.random() < 0.6:
            result = rng.choice(
                (phrase(rng), f"{rng.randint(-9, 40)} degrees", f"{rng.randint(0, 23)}:{rng.randint(10, 59)}")
            )
            segments += turn("user", f"<tool_response>\n{result}\n</tool_response>", learn=False)
            segments += turn("assistant", f"The tool says: {result}", learn=True)
        return segments

    # Parts ---------------------------------------------------------------------------------

    def system_message(self, rng: random.Random) -> str:
        if rng.random() < 0.75:
            return rng.choice(facts.SYSTEM_MESSAGES)
        return " ".join(f"{phrase(rng).capitalize()}." for _ in range(rng.randint(1, 4)))

    def introduction(self, rng: random.Random) -> list[Pair]:
        """The user gives a name and asks for it later; the only answers that depend on context."""
        name = rng.choice(facts.NAMES) if rng.random() < 0.6 else invented_word(rng).capitalize()
        between = [self.exchange(rng) for _ in range(rng.choice((0, 0, 1, 2)))]
        return [
            (
                rng.choice(("My name is {}.", "I am {}.", "Hello, my name is {}.", "Hi, I am {}.")).format(
                    name
                ),
                f"Nice to meet you, {name}!",
            ),
            *between,
            (
                varied(rng.choice(("What is my name?", "Do you remember my name?")), rng),
                f"Your name is {name}.",
            ),
        ]

    def unknown(self, rng: random.Random) -> Pair:
        while True:
            template = rng.choice(facts.UNKNOWN_TEMPLATES)
            question = template.format(*(unknown_topic(rng) for _ in range(template.count("{}"))))
            if normalized(question) not in self.answers:
                return question, facts.UNKNOWN_ANSWER

    def sample_text(self, rng: random.Random, documents: int) -> list[str]:
        """ASCII lines to learn merges from. Other scripts stay bytes, so that answers in them
        arrive as split UTF-8 sequences and exercise the detokenizer."""
        markers = "|".join(map(re.escape, (END_OF_TEXT, TURN_START, TURN_END)))
        texts = ["".join(text for text, _ in self.document(rng)) for _ in range(documents)]
        pieces = [piece for text in texts for piece in re.split(markers, text)]
        return ["".join(char for char in piece if char.isascii()) for piece in pieces]


def turn(role: str, content: str, learn: bool) -> list[Segment]:
    """One ChatML turn. The end marker is learnt with the content; the header never is."""
    return [(f"{TURN_START}{role}\n", False), (content + TURN_END, learn), ("\n", False)]


# Tool name: argument name, questions that call for it. `{}` is a place.
TOOLS = {
    "get_weather": (
        "city",
        ["What is the weather in {}?", "How is the weather in {}?", "Tell me the weather in {}."],
    ),
    "get_time": ("city", ["What time is it in {}?", "Tell me the time in {}."]),
    "search": ("query", ["Search for {}.", "Find information about {}."]),
}


def tool_json(name: str, rng: random.Random) -> str:
    """A tool definition in one of the spellings in which template engines print JSON."""
    argument = TOOLS[name][0]
    schema = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    if rng.random() < 0.3:
        del schema["required"]
    function = {
        "name": name,
        "description": rng.choice((f"Use {name}.", "Get the current weather", phrase(rng))),
        "parameters": schema,
    }
    if rng.random() < 0.3:
        del function["description"]
    separators = rng.choice(((", ", ": "), (",", ":")))
    return json.dumps(
        {"type": "function", "function": function}, sort_keys=rng.random() < 0.4, separators=separators
    )
