"""Make a smaller encoder: what `btr train kale` and `btr train leaf` do with their options."""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from btr.corpus import read_passages, read_questions
from btr.errors import InputError
from btr.model.checkpoint import digest
from btr.retrieve.dense.encoder import Embedder, Encoder
from btr.retrieve.dense.routed import save_routed
from btr.train.alignment import Alignment, Loss, Say, Text, agreement, shortened, spread, targets
from btr.train.folder import RunFolder
from btr.train.kale import divergence
from btr.train.leaf import FITTED, fit_projection, squared_error, with_projection
from btr.train.schedule import Schedule

ASKED = 1000  # questions that the encoders are compared on, where no others are given
Vectors = NDArray[np.float32]
METHODS = {"kale": "KALE, arXiv 2304.01016", "leaf": "LEAF, arXiv 2509.12539"}


def train_encoder(options: argparse.Namespace, say: Say) -> None:
    """Train, and write RUN/encoder, and for LEAF RUN/routed: both encoders, as sentence-transformers routes them.

    Raises:
        InputError: nothing to learn from, settings that do not fit, or a student that is too far from its teacher.
    """
    out = Path(options.out)
    RunFolder(out).check()
    if options.command == "kale" and options.temperature <= 0:
        raise InputError(f"--temperature is {options.temperature:g}; give one above 0")
    texts = read_texts(options)
    teacher = Encoder.from_pretrained(options.encoder)
    model, tokenizer = build_student(options, teacher)
    student = Encoder(model, tokenizer, out.name, aligned=aligned(teacher))
    run = Alignment(
        student, choose_loss(options, teacher), schedule(options), options.batch, out,
        {"method": options.command, "teacher": teacher.fingerprint, "student": student.fingerprint,
         "texts": digest([], *(f"{text.kind} {text.text}" for text in texts)),
         "temperature": getattr(options, "temperature", None)},
    )  # fmt: skip
    run.folder.create()
    if options.no_resume:
        run.folder.forget()
    size = sum(parameter.numel() for parameter in student.model.parameters())
    resumed = run.resume()
    going = f"resuming at step {run.step}" if resumed else "starting"
    say(f"{going}: {options.command}, {size:,} parameters, {len(texts):,} texts, aligned to {teacher.fingerprint}")
    vectors = targets(teacher, texts, Path(options.embeddings or out), say)
    if options.command == "leaf" and not resumed:
        fit_projection(student, texts[:FITTED], vectors[:FITTED])
    run.run(texts, vectors, say, options.save_every)
    trained = Encoder(student.model, tokenizer, out.name, aligned=aligned(teacher))
    facts = {"method": METHODS[options.command], "teacher": options.encoder, "steps": run.step, "texts": len(texts)}
    trained.save(out / "encoder", facts | compare(trained, teacher, options, texts, vectors, say))
    say(f"wrote {out / 'encoder'}")
    if options.command == "leaf":
        save_routed(trained, teacher, out / "routed")
        say(f"wrote {out / 'routed'}: questions by it, passages by the teacher, for sentence-transformers")


def compare(
    student: Encoder, teacher: Encoder, options: argparse.Namespace, texts: list[Text], targets: Vectors, say: Say
) -> dict[str, float]:
    """Say how near the student comes to its teacher, on dev questions, else on some that it has learnt from.

    Raises:
        InputError: not as near as --least-recall.
    """
    learnt = [text.text for text in texts[:ASKED]]
    questions = [question.question for question in read_questions(options.dev)] if options.dev else learnt
    near, recall = agreement(student, teacher, questions, targets)
    which = f"{len(questions):,} {'dev questions' if options.dev else 'texts it has learnt from'}"
    say(f"over {which}: mean cosine to the teacher {near:.4f}, {recall:.1%} of its 20 nearest texts found again")
    if not recall >= options.least_recall:
        raise InputError(
            f"the student finds {recall:.1%} of the teacher's nearest texts, --least-recall is {options.least_recall:g}"
            ", so it is not written; train longer or on more texts, in another --out, or lower that to have it as it is"
        )
    kind = "dev" if options.dev else "learnt"
    return {f"{kind}_cosine": round(near, 4), f"{kind}_recall_at_20": round(recall, 4)}


def read_texts(options: argparse.Namespace) -> list[Text]:
    """Read the questions, each once, and for LEAF the passages.

    Raises:
        InputError: there are none.
    """
    questions = dict.fromkeys(q.question for path in options.questions for q in read_questions(path))
    texts = [Text(question, "query") for question in questions]
    if getattr(options, "text", None):
        found = read_passages(options.text, limit=options.passages)
        texts += [Text(f"{passage.title} {passage.text}".strip(), "passage") for passage in found]
    if not texts:
        raise InputError("nothing to learn from; pass --questions FILE" + " or --text" * (options.command == "leaf"))
    return texts


def build_student(options: argparse.Namespace, teacher: Encoder) -> tuple[Embedder, Tokenizer]:
    """Return the model that is trained, and its tokenizer.

    Raises:
        InputError: neither layers nor a student.
    """
    given = getattr(options, "student", None)
    if not given and not options.layers:
        cure = "pass --layers N, such as 2" if options.command == "kale" else "pass --layers N or --student ENCODER"
        raise InputError(f"which encoder is to be trained? {cure}")
    source = Encoder.from_pretrained(given) if given else teacher
    model = source.model
    if options.layers:
        model = shortened(source, read_layers(options.layers, source.model.bert.config.num_hidden_layers))
    return with_projection(model, teacher.model) if options.command == "leaf" else model, source.tokenizer


def read_layers(text: str, count: int) -> list[int]:
    """Read '2' (how many), or '0,5' or '0,' (which).

    Raises:
        InputError: no such numbers.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"--layers {text!r} is not a number, or several as in 0,3")
    if "," in text:
        return [int(part) for part in parts]
    if not 1 <= int(text) <= count:
        raise InputError(f"--layers is {text}; the encoder has {count}")
    return spread(count, int(text))


def aligned(teacher: Encoder) -> tuple[str, ...]:
    """Return whose passages a student's questions may be compared with: the teacher's, and what it serves itself."""
    return tuple(dict.fromkeys((teacher.fingerprint, *teacher.aligned)))


def choose_loss(options: argparse.Namespace, teacher: Encoder) -> Loss:
    """Return the loss of the method."""
    if options.command == "leaf":
        return squared_error
    return divergence(options.temperature, teacher.model.recipe.normalise)


def schedule(options: argparse.Namespace) -> Schedule:
    """Return how long and how fast."""
    names = ("steps", "learning_rate", "warmup", "seed")
    return Schedule(**{name: getattr(options, name) for name in names}, matrices="adamw")
