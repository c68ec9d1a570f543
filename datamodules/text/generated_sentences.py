"""English of a small grammar, whose sentences, and pairs of them, follow rules that can be learnt.

No benchmark: it lets the whole path from text to score run where no data are.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

GENERATOR_VERSION = 1
"""Raise it with every change of what is generated."""

# singular, plural, what it is
NOUNS = [
    ("dog", "dogs", "animal"),
    ("cat", "cats", "animal"),
    ("horse", "horses", "animal"),
    ("bird", "birds", "animal"),
    ("doctor", "doctors", "person"),
    ("pilot", "pilots", "person"),
    ("teacher", "teachers", "person"),
    ("farmer", "farmers", "person"),
    ("car", "cars", "vehicle"),
    ("truck", "trucks", "vehicle"),
    ("boat", "boats", "vehicle"),
    ("train", "trains", "vehicle"),
]
# base, third person, past (also its participle)
VERBS = [
    ("follow", "follows", "followed"),
    ("watch", "watches", "watched"),
    ("help", "helps", "helped"),
    ("pass", "passes", "passed"),
    ("move", "moves", "moved"),
    ("stop", "stops", "stopped"),
    ("remember", "remembers", "remembered"),
    ("reach", "reaches", "reached"),
]
ADJECTIVES = ["old", "young", "small", "large", "red", "white", "quiet", "strong"]
PLACES = ["garden", "river", "village", "forest", "station", "bridge", "market", "field"]
TIMES = ["morning", "evening", "summer", "winter"]
SUBJECTS = ["film", "book", "play", "story", "song", "cast"]
GOOD = ["brilliant", "charming", "funny", "moving", "fresh", "clever"]
BAD = ["dull", "boring", "clumsy", "stupid", "weak", "tired"]


class Example(NamedTuple):
    """A labelled sentence or pair.

    Attributes:
        first, second: sentences; the second is None where there is one alone.
        label: a class's number, or a real one.
        mismatched: from the genre that is not in the training set.
    """

    first: str
    second: str | None
    label: float
    mismatched: bool = False


@dataclass(frozen=True)
class Event:
    """Who did what to whom, and where."""

    adjective: str
    subject: tuple[str, str, str]
    verb: tuple[str, str, str]
    object: tuple[str, str, str]
    place: str

    @classmethod
    def random(cls, rng: Random) -> "Event":
        subject, other = rng.sample(NOUNS, 2)
        return cls(rng.choice(ADJECTIVES), subject, rng.choice(VERBS), other, rng.choice(PLACES))

    def changed(self, rng: Random, names: list[str]) -> "Event":
        """Another adjective, verb … where `names` says so."""
        options = {"adjective": ADJECTIVES, "verb": VERBS, "place": PLACES}
        event = self
        for name in names:
            taken = (getattr(self, name), event.subject, event.object)
            free = [option for option in options.get(name, NOUNS) if option not in taken]
            event = replace(event, **{name: rng.choice(free)})
        return event

    @property
    def active(self) -> str:
        return f"the {self.subject[0]} {self.verb[2]} the {self.object[0]}"

    @property
    def passive(self) -> str:
        return f"the {self.object[0]} was {self.verb[2]} by the {self.subject[0]}"

    @property
    def full(self) -> str:
        subject = f"the {self.adjective} {self.subject[0]}"
        return f"{subject} {self.verb[2]} the {self.object[0]} in the {self.place}"


def acceptability(rng: Random) -> Example:
    """1 where the verb agrees with its subject and not with a noun between them; 7 in 10 do."""
    event, right = Event.random(rng), rng.random() < 0.7
    plural, other = rng.randrange(2), rng.randrange(2)
    verb = event.verb[0 if bool(plural) == right else 1]
    between = f"near the {event.object[other]}"
    return Example(f"the {event.subject[plural]} {between} {verb} the {event.place}", None, right)


def sentiment(rng: Random) -> Example:
    """1 for praise; `not` turns it round."""
    good, negated = rng.random() < 0.5, rng.random() < 0.4
    some = rng.choice(GOOD if good else BAD)
    subject = f"{rng.choice(ADJECTIVES)} {rng.choice(SUBJECTS)}"
    text = f"the {subject} is {'not ' if negated else ''}{some}"
    return Example(f"{text} in the {rng.choice(TIMES)}", None, good != negated)


def paraphrase(rng: Random, question: bool = False) -> Example:
    """1 where active and passive say the same, 0 where the roles are exchanged; 2 in 3 are 1."""
    event, same = Event.random(rng), rng.random() < 2 / 3
    other = event if same else replace(event, subject=event.object, object=event.subject)
    if question:
        first, second = (f"is it true that {said} ?" for said in (event.active, other.passive))
        return Example(first, second, same)
    return Example(f"{event.active} .", f"{other.passive} .", same)


def similarity(rng: Random) -> Example:
    """How many of the five parts of an event two sentences share."""
    event, parts = Event.random(rng), ["adjective", "subject", "verb", "object", "place"]
    differ = rng.sample(parts, rng.randint(0, 5))
    return Example(event.full, event.changed(rng, differ).full, 5.0 - len(differ))


def inference(rng: Random, mismatched: bool = False) -> Example:
    """0 follows (from what a thing is), 1 is not said (when it was), 2 is contradicted."""
    event, label = Event.random(rng), rng.randrange(3)
    premise = event.full
    if mismatched:
        premise = f"in the {event.place} the {event.adjective} {event.active.removeprefix('the ')}"
    said = f"{event.verb[2]} the {event.object[0]}"
    hypothesis = (
        f"the {event.subject[2]} {said}",
        f"the {event.subject[0]} {said} in the {rng.choice(TIMES)}",
        f"the {event.subject[0]} never {said}",
    )[label]
    return Example(premise, hypothesis, label, mismatched)


def answers(rng: Random) -> Example:
    """0 where the sentence says what the question asks, 1 where it does not."""
    event, label = Event.random(rng), rng.randrange(2)
    where = f"in the {event.place}" if label == 0 else f"in the {rng.choice(TIMES)}"
    question = f"where did the {event.subject[0]} {event.verb[0]} the {event.object[0]} ?"
    return Example(question, f"{event.active} {where} .", label)


def example(task: str, rng: Random, test: bool = False) -> Example:
    """A labelled example in the form of one of GLUE's tasks, classes numbered as there.

    Args:
        task: its name in `datamodules.text.glue.TASKS`.
        rng: random numbers.
        test: for the test set, of which half is mismatched where there is such a thing.
    """
    match task:
        case "cola":
            return acceptability(rng)
        case "sst2":
            return sentiment(rng)
        case "mrpc" | "qqp":
            return paraphrase(rng, question=task == "qqp")
        case "stsb":
            return similarity(rng)
        case "mnli":
            return inference(rng, mismatched=test and rng.random() < 0.5)
        case "qnli":
            return answers(rng)
    three = inference(rng)
    follows = three.label == 0
    return three._replace(label=int(follows if task == "wnli" else not follows))


def document(rng: Random) -> str:
    """Five to fifteen sentences about what happens in one place."""
    place, cast = rng.choice(PLACES), rng.sample(NOUNS, 4)
    sentences = []
    for _ in range(rng.randint(5, 15)):
        subject, other = rng.sample(cast, 2)
        event = Event(rng.choice(ADJECTIVES), subject, rng.choice(VERBS), other, place)
        plural = rng.randrange(2)
        now = f"the {event.adjective} {subject[plural]} near the {place} {event.verb[1 - plural]}"
        sentences.append(
            rng.choice([event.full, event.passive, f"{now} the {other[rng.randrange(2)]}"])
        )
    return " . ".join(sentences) + " ."
