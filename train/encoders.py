"""Make a smaller encoder: what `btr train kale` and `btr train leaf` do with their options."""

import argparse
from pathlib import Path

from btr.corpus import read_passages, read_questions
from btr.errors import InputError
from btr.model.checkpoint import digest
from btr.retrieve.dense.encoder import Embedder, Encoder
from btr.train.alignment import Alignment, Loss, Say, Text, cosine, shortened, spread, targets
from btr.train.folder import RunFolder
from btr.train.kale import divergence
from btr.train.leaf import squared_error, with_projection
from btr.train.schedule import Schedule

METHODS = {"kale": "KALE, arXiv 2304.01016", "leaf": "LEAF, arXiv 2509.12539"}


def train_encoder(options: argparse.Namespace, say: Say) -> None:
    """Train, and write RUN/encoder.

    Raises:
        InputError: nothing to learn from, or settings that do not fit.
    """
    out = Path(options.out)
    RunFolder(out).check()
    if options.command == "kale" and options.temperature <= 0:
        raise InputError(f"--temperature is {options.temperature:g}; give one above 0")
    texts = read_texts(options)
    teacher = Encoder.from_pretrained(options.encoder)
    student = Encoder(build_student(options, teacher), teacher.tokenizer, out.name, aligned=aligned(teacher))
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
    going = f"resuming at step {run.step}" if run.resume() else "starting"
    say(f"{going}: {options.command}, {size:,} parameters, {len(texts):,} texts, aligned to {teacher.fingerprint}")
    run.run(texts, targets(teacher, texts, out, say), say, options.save_every)
    trained = Encoder(student.model, teacher.tokenizer, out.name, aligned=aligned(teacher))
    facts = {"method": METHODS[options.command], "teacher": options.encoder, "steps": run.step, "texts": len(texts)}
    if options.dev:
        questions = [question.question for question in read_questions(options.dev)]
        facts["dev_cosine"] = round(cosine(trained, teacher, questions), 4)
        say(f"mean cosine to the teacher over {len(questions):,} dev questions: {facts['dev_cosine']:.4f}")
    trained.save(out / "encoder", facts)
    say(f"wrote {out / 'encoder'}")


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


def build_student(options: argparse.Namespace, teacher: Encoder) -> Embedder:
    """Return the model that is trained.

    Raises:
        InputError: neither layers nor a student, or both.
    """
    given = getattr(options, "student", None)
    if bool(given) == bool(options.layers):
        cure = "pass --layers N, such as 2" if options.command == "kale" else "pass --layers N or --student ENCODER"
        raise InputError(f"which encoder is to be trained? {cure}")
    if given:
        student = Encoder.from_pretrained(given)
        if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
            raise InputError(f"{given} has another vocabulary than the teacher; this implementation wants the same")
        model = student.model
    else:
        model = shortened(teacher, read_layers(options.layers, teacher.model.bert.config.num_hidden_layers))
    return with_projection(model, teacher.model) if options.command == "leaf" else model


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
