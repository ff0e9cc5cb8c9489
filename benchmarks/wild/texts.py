"""The sources of the wild benchmark: those of the truth benchmark, and nine more that nothing was chosen on."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from truth import texts
from truth.texts import TASKS, Grouped, right_answer

from foretune.demo.data import clean, uniform
from foretune.demo.packages import default_cache, fetch

_SUBTASKS = f"{TASKS}/natural_instructions"
MORE_BIGBENCH = replace(  # carries a canary: never to be published again
    texts.BIGBENCH,
    folder="bigbench-more",
    members={
        "reviews.json": (f"{TASKS}/multiemo/all_sentence_en/task.json",),
        "claims.json": (f"{TASKS}/fact_checker/fever/task.json",),
        "evidence.json": (f"{TASKS}/vitaminc_fact_verification/task.json",),
        "steps.json": (f"{TASKS}/goal_step_wikihow/step_ordering/task.json",),
        "dialogues.json": (f"{TASKS}/movie_dialog_same_or_different/task.json",),
        "fallacies.json": (f"{TASKS}/logical_fallacy_detection/task.json",),
        "reasons.json": (f"{TASKS}/winowhy/task.json",),
        "types.json": (f"{_SUBTASKS}/subtask046_miscellaenous_question_typing/task.json",),
        "answerable.json": (f"{_SUBTASKS}/subtask050_multirc_answerability/task.json",),
    },
)
KINDS = ("humans", "entity", "date", "quantity", "location", "organization")


def build(name: str, folder: Path) -> None:
    """Write ``train.jsonl`` and ``eval.jsonl`` of a source into a folder.

    Args:
        name: A key of ``OPEN`` or ``SEALED``.
        folder: The folder of the files.
    """
    if name in SEALED:
        texts.write(SEALED[name](), folder, texts.EVAL_SHARE)
    else:
        texts.build(name, folder)


def reviews() -> Iterator[Grouped]:
    """Sentiment of a sentence of a review, in four classes."""
    for example in _examples("reviews"):
        yield example["input"], {"text": clean(example["input"]), "label": right_answer(example)}


def claims() -> Iterator[Grouped]:
    """Is a claim true? Nothing but the claim is given."""
    for example in _examples("claims"):
        text = clean(re.sub(r"^.*?claim was made: |\s*Q: Was this claim true or false\?", "", example["input"]))
        yield text, {"text": text, "label": right_answer(example)}


def evidence() -> Iterator[Grouped]:
    """Does a claim follow from a sentence, contradict it, or neither? Claims about one article are on one side."""
    for example in _examples("evidence"):
        before, _, claim = example["input"].partition("\nClaim: ")
        if claim:
            yield (
                before.split(":")[0],
                {"text": clean(claim), "sentence": clean(before), "label": right_answer(example)},
            )


def steps() -> Iterator[Grouped]:
    """Which of two steps toward a goal comes first? Steps toward one goal are on one side."""
    for example in _examples("steps"):
        match = re.match(r"In order to '?(.+?),?'?,? one can '?(.+?)'? and '?(.+?)'?\. Which should", example["input"])
        if match:
            goal, first, second = (clean(part).strip("'.") for part in match.groups())
            label = "in order" if _letters(right_answer(example)) == _letters(first) else "swapped"
            yield goal, {"text": f"{goal}: {first}", "sentence": second, "label": label}


def dialogues() -> Iterator[Grouped]:
    """Are two lines of a film spoken by the same person? Lines of one dialogue are on one side."""
    for example in _examples("dialogues"):
        dialogue, _, asked = example["input"].partition("-----")
        lines = re.search(r'the sentences "(.+?)" and "(.+?)"', asked)
        if lines:
            first, second = map(clean, lines.groups())
            yield clean(dialogue), {"text": first, "sentence": second, "label": right_answer(example)}


def fallacies() -> Iterator[Grouped]:
    """Is an argument valid?"""
    for example in _examples("fallacies"):
        text = clean(re.sub(r"^.*(as appropriate\. |'Invalid'\? )", "", example["input"], flags=re.DOTALL))
        yield text, {"text": text, "label": right_answer(example)}


def reasons() -> Iterator[Grouped]:
    """Is the reason right for which a pronoun is said to mean somebody? Reasons for one sentence are on one side."""
    for example in _examples("reasons"):
        before, _, reason = example["input"].partition(" The '")
        if reason:
            yield before, {"text": clean(f"The '{reason}"), "sentence": clean(before), "label": right_answer(example)}


def types() -> Iterator[Grouped]:
    """What a question asks for: the six most frequent of its kinds."""
    for example in _examples("types"):
        text = clean(example["input"].removeprefix("Question: ").split(" (Answer:")[0])
        kinds = [kind.strip(".").casefold() for kind in example["target"]]
        if len(kinds) == 1 and kinds[0] in KINDS:
            (label,) = kinds
            yield text, {"text": text, "label": label}


def answerable() -> Iterator[Grouped]:
    """Does a sentence answer a question? One in eight of the many that do not is kept."""
    for example in _examples("answerable"):
        sentence, _, question = example["input"].removeprefix("Sentence: ").partition("\nQuestion: ")
        label, text = example["target"][0].strip(".").casefold(), clean(f"{question} {sentence}")
        if question and (label == "yes" or (label == "no" and uniform(text) < 1 / 8)):
            yield question, {"text": text, "label": label}


def _examples(name: str) -> list[dict]:
    path = fetch(MORE_BIGBENCH, default_cache(), notify=print) / f"{name}.json"
    examples = json.loads(path.read_text(encoding="utf-8"))["examples"]
    return sorted(examples, key=lambda example: uniform(f"sample of {example['input']}"))[:9000]


def _letters(text: str) -> str:
    return re.sub(r"\W+", "", text).casefold()


SEALED: dict[str, Callable[[], Iterator[Grouped]]] = {
    source.__name__: source
    for source in (reviews, claims, evidence, steps, dialogues, fallacies, reasons, types, answerable)
}
OPEN = ("movie", "tweets", *texts.BUILDERS)
