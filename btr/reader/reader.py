"""The reader: questions and passages in, answers out. The figure of the paper in one file.

    offline    passage -> layers 1..k -> norm of layer k+1 -> sign    1 bit a dimension and one scalar a token (Encoded)
    runtime    question -> layers 1..k  \\
               bits -> u_hat, h_hat      -> layers k+1..n, per passage -> memory -> decoder -> answer

Shapes: B questions, N passages, R rows (question x passage), T row tokens, M tokens of all passages, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from btr import kernels
from btr.command import INT8
from btr.errors import InputError
from btr.model import layout
from btr.model.bert_fid import BertFiD
from btr.model.binarize import round_scale
from btr.model.checkpoint import digest, save_reader
from btr.model.config import Mode, ReaderConfig
from btr.model.devices import choose_dtype
from btr.model.fid import FiD
from btr.model.int8_decoding import Matrices
from btr.model.int8_encoding import round_joint
from btr.model.kinds import Model
from btr.model.layout import Halves, MergedRows, in_batches, length_batches, pad, pruning_features, steady
from btr.model.merge import Preset, Schedule
from btr.reader import refusals
from btr.reader.answer import Answer, Listener, Memory, Stopwatch
from btr.reader.expansion import known, read_later, rebuilt
from btr.reader.generative import Generative
from btr.reader.kept import NOTHING, KeptRows
from btr.reader.loading import load, text_of
from btr.reader.passages import PassageText, titled
from btr.storage.encoded import Encoded


class Reader:
    """A reader over text: Fusion-in-Decoder (T5, or BERT with a T5's decoder), or one that points at spans (BERT).

    Not thread-safe in `calibrate`; answering changes nothing. In a forked process it computes on one thread.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, name: str = "") -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self._text = text_of(self.model, tokenizer)
        self._fingerprint: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path | None = None,
        *,
        k: int | None = None,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
    ) -> "Reader":
        """Load a reader folder or hub id; None is the reader shipped with btr.

        A plain Hugging Face T5 answers in `full` mode, and with k in the others too (then `calibrate` it, or the signs
        have the paper's mean 0 and magnitude 1).

        dtype: float32, bfloat16, auto: bfloat16 where the device multiplies it, or int8: auto, then `round_weights`.
        device: cpu, cuda, cuda:1, mps, or auto: the accelerator that is here, if there is one.

        Raises:
            InputError: missing or damaged files, an unknown model, a dtype or device not to be had here, a wrong k.
        """
        reader = cls(*load(path_or_id, k, dtype, device), str(path_or_id or "default"))
        if dtype == INT8:
            reader.round_weights()
        return reader

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the reader, unrounded, as a folder that `from_pretrained`, and transformers, can read."""
        save_reader(self.model, self.tokenizer, Path(folder))

    def round_weights(self) -> None:
        """Answer with int8 weights: layers k+1..n, and `round_decoder` if there is one. What a store keeps stays.

        Raises:
            InputError: the device, or this CPU, does not multiply int8.
        """
        choose_dtype(INT8, self.device)
        round_joint(self.model)
        if self.family == "generative":
            self.round_decoder()

    def round_decoder(self) -> None:
        """Write single answers with int8 weights in the decoder alone; raises InputError without one, or on a GPU."""
        refusals.check_decoder(self.family, self.device)
        if isinstance(self._text, Generative):
            self._text.rounded = Matrices.of(self._text.t5)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.embedding.device

    @property
    def config(self) -> ReaderConfig:
        """How the reader splits, binarizes and limits."""
        return self.model.config

    @property
    def family(self) -> str:
        """'generative' (writes its answers) or 'extractive' (quotes them)."""
        return self._text.family

    @property
    def no_answer_above(self) -> float | None:
        """The `no_answer` over which it abstains unless told, as it was calibrated; None: it always answers."""
        return self.config.no_answer_above

    @property
    def prunes(self) -> bool:
        """Whether it can read some of the passages to the end, and leave the others."""
        return self.model.pruner is not None

    @property
    def D(self) -> int:
        """Width of a token's vector."""
        return self.model.width

    @property
    def bits(self) -> int:
        """Signs that are kept of a token: D, or fewer."""
        return self.model.binarizer.bits

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all that stored bits depend on.

        Weights count as bfloat16, so that a reader has one fingerprint in both precisions.
        """
        if self._fingerprint is None:
            tensors, facts = self.model.identity()
            self._fingerprint = digest(tensors, facts, self.tokenizer_hash)
        return self._fingerprint

    @property
    def tokenizer_hash(self) -> str:
        """16 hexadecimal digits of the tokenizer."""
        return digest([], self.tokenizer.to_str())

    @torch.no_grad()
    def calibrate(self, passages: Sequence[PassageText]) -> None:
        """Set the binarizer's mean and magnitude from a sample of passages (a few hundred are enough).

        Raises:
            InputError: no passages, one without text, or a reader without k.
        """
        refusals.check_mode("binary", self.config)
        if not len(passages):
            raise InputError("no passages to calibrate from; pass at least one")
        ids, _ = self.passage_ids(titled(passages))
        found = dict(self._lower(ids))
        normalised = torch.cat([self.model.normalised(found[i]) for i in range(len(ids))])
        lengths = np.array([len(row) for row in ids])
        tokens = np.concatenate([np.array(row, np.int64) for row in ids])
        self.model.binarizer.calibrate(normalised, known(self.model, tokens, np.cumsum(lengths) - lengths))
        self._fingerprint = None

    def question_ids(self, question: str) -> list[int]:
        """Tokenize a question.

        Raises:
            InputError: blank, or longer than the reader's limit.
        """
        question, most = question.strip(), self.config.max_question_tokens
        refusals.check_question(question, most)
        ids = self._text.question_ids(question)
        if len(ids) > most:
            raise InputError(f"the question has {len(ids)} tokens, this reader reads {most}; shorten it")
        return ids

    def passage_ids(self, passages: Sequence[tuple[str, str]]) -> tuple[list[list[int]], int]:
        """Tokenize (title, text) pairs; returns the ids, and how many passages were cut to the limit.

        Raises:
            InputError: a passage without text.
        """
        for n, (_, text) in enumerate(passages):
            if not text.strip():
                raise InputError(f"passage {n + 1} of {len(passages)} has no text; leave it out")
        return self._text.passage_ids(passages, self.config.max_passage_tokens)

    def encode_passages(self, passages: Sequence[PassageText], mode: Mode = "binary") -> Encoded:
        """Read passages once, apart from any question: signs (mode 'binary') or states (mode 'float') after layer k.

        Raises:
            InputError: a passage without text, or a reader without k.
        """
        return self.encode_ids(passages, self.passage_ids(titled(passages))[0], mode)

    @torch.inference_mode()
    def encode_ids(
        self, passages: Sequence[PassageText], ids: Sequence[Sequence[int]], mode: Mode = "binary"
    ) -> Encoded:
        """Encode passages whose tokens `passage_ids` has made; as `encode_passages`."""
        refusals.check_mode(mode, self.config)
        if mode == "full":
            raise InputError("mode 'full' reads passages with the question and keeps nothing; use 'binary' or 'float'")
        lengths = np.array([len(row) for row in ids], np.int32)
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        tokens = np.array([t for row in ids for t in row], np.uint32)
        hidden = torch.zeros(len(tokens), self.D, dtype=self.model.dtype, device=self.device)
        for i, states in self._lower(ids):
            hidden[offsets[i] : offsets[i + 1]] = states
        with steady(len(tokens)):
            signs, scale = (kept.cpu() for kept in self.model.keep(hidden, known(self.model, tokens, offsets[:-1])))
        unread = torch.from_numpy(~read_later(self.model, tokens))
        signs[unread], scale[unread] = False, 0
        binary = mode == "binary"
        names, titles, contents = (tuple(getattr(p, name) for p in passages) for name in ("id", "title", "text"))
        return Encoded(
            self.fingerprint, self.bits if binary else self.D, names, titles, contents, lengths, tokens,
            round_scale(scale).numpy(),
            kernels.pack(signs.numpy()) if binary else None,
            None if binary else hidden.float().cpu().numpy(),
        )  # fmt: skip

    @torch.inference_mode()
    def _lower(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        """Yield (index, residual stream (T, D) after layer k) of each token sequence, batched by length."""
        for batch in length_batches([len(row) for row in ids], layout.BATCH_TOKENS):
            rows, lengths = self._padded([ids[i] for i in batch])
            with steady(rows.numel()):
                hidden = self.model.lower(rows, lengths, passage=True)
            yield from ((i, hidden[r, : len(ids[i])]) for r, i in enumerate(batch))

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        return pad(ids, self.model.pad_token_id, self.device)

    def schedule(self, name: Preset, ratio: float = 0.2, g: int = 3) -> Schedule:
        """Return a merge schedule for this reader: 'every' g-th layer, or the paper's 'algorithm' (all but those).

        Raises:
            InputError: a span reader, a ratio out of 0 to 0.5, or another name.
        """
        if not isinstance(self.model, FiD | BertFiD):
            raise InputError("a span reader merges no tokens: its answers could not be quoted; leave merging out")
        return Schedule.preset(name, self.model.joint, self.model.t5.config.num_decoder_layers, ratio, g)

    def answer(
        self,
        question: str,
        passages: "Sequence[PassageText] | Encoded",
        mode: Mode | None = None,
        max_new_tokens: int = 32,
        merge: Schedule | None = None,
        prune: int = 0,
        no_answer_above: float | None = None,
        choices: Sequence[str] | None = None,
        kept: KeptRows = NOTHING,
    ) -> Answer:
        """Answer one question from passages, or from what `encode_passages` or a store gave; no mode: the reader's own.

        merge: how much passage tokens are merged on the way (`schedule`), in modes float and binary; None: not at all.
        prune: how many passages are read to the end, those that a first look at the bits (in mode float, the states)
            says are worth it (`Pruner`); 0: all. In mode full these few are then read with the question, nothing kept
            apart, from their tokens.
        no_answer_above: the probability that no passage answers over which it abstains, and has a best guess alone; 1:
            it never does; None: the reader's own. A generative reader knows no such probability.
        choices: what to choose from, by likelihood, instead of writing freely; a span reader cannot.
        kept: rows that were read by this reader before, and are not read again; those that now are, are added.

        Raises:
            InputError: blank or over-long question, no passages, an Encoded of another reader or of another mode, or a
                schedule, number or choice that this reader or mode cannot follow.
        """
        more = (merge, prune, None, no_answer_above, None if choices is None else [choices], kept)
        return self.answer_batch([question], [passages], mode, max_new_tokens, *more)[0]

    @torch.inference_mode()
    def answer_batch(
        self,
        questions: Sequence[str],
        passages: "Sequence[Sequence[PassageText] | Encoded]",
        mode: Mode | None = None,
        max_new_tokens: int = 32,
        merge: Schedule | None = None,
        prune: int = 0,
        listener: Listener | None = None,
        no_answer_above: float | None = None,
        choices: Sequence[Sequence[str]] | None = None,
        kept: KeptRows = NOTHING,
    ) -> list[Answer]:
        """Answer B questions, each from its own passages; as `answer`, decoded together; a listener hears of it."""
        mode = mode or self.config.default_mode
        refusals.check_mode(mode, self.config)
        merge = merge if merge is not None and merge.merges else None
        if merge is not None:
            refusals.check_merge(merge, self.schedule("none"), mode)
        refusals.check_prune(self.model, prune, self.name)
        refusals.check_passages(passages, len(questions))
        above = refusals.check_threshold(self.no_answer_above if no_answer_above is None else no_answer_above)
        refusals.check_choices(choices, len(questions), self.family)
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; use 1 or more")
        if not questions:
            return []
        watch = Stopwatch(listener)
        with watch("tokenize"):
            ids = [self.question_ids(question) for question in questions]
        each = zip(ids, passages, strict=True)
        memories = [self._remember(question, own, mode, merge, prune, watch, kept) for question, own in each]
        if choices is not None and isinstance(self._text, Generative):
            return self._text.answer(memories, mode, max_new_tokens, watch, choices)
        return [answer.abstaining(above) for answer in self._text.answer(memories, mode, max_new_tokens, watch)]

    def _remember(
        self,
        question: list[int],
        passages: "Sequence[PassageText] | Encoded",
        mode: Mode,
        merge: Schedule | None,
        prune: int,
        watch: Stopwatch,
        kept: KeptRows,
    ) -> tuple[Tensor | MergedRows, Memory]:
        """Encode a question with its passages: memory (rows' tokens, D), row after row or merged, and what it holds."""
        Q, pruner = len(question), self.model.pruner if 0 < prune < len(passages) else None
        if mode == "full" and pruner is None:
            with watch("tokenize"):
                ids = self.passage_ids(titled(passages))[0]
            with watch("encode"):
                states = self._full(Q, [question + row for row in ids], kept)
            return states, Memory.whole(Q, tuple(titled(passages)), tuple(map(np.array, ids)))
        halves, held = self._apart(question, passages, "binary" if mode == "full" else mode, watch)
        rows = [question + row.tolist() for row in held.ids]
        if pruner is not None:
            with watch("look"):
                chosen = pruner.best(pruning_features(self.model, halves), prune)
            halves, rows = halves.only(chosen), [rows[i] for i in chosen]
            held = Memory.whole(Q, held.passages, held.ids) if mode == "full" else held
            held = replace(held, lengths=tuple(n if i in chosen else 0 for i, n in enumerate(held.lengths)))
        with watch("encode"):
            if mode == "full":
                return self._full(Q, rows, kept), held
            if merge is not None and isinstance(self.model, FiD | BertFiD):
                return MergedRows.join(halves, merge, self.model.merging), held
            return kept.encode(mode, rows, halves.rows, self._joiner(halves)), held

    def _apart(
        self, question: list[int], passages: "Sequence[PassageText] | Encoded", mode: Mode, watch: Stopwatch
    ) -> tuple[Halves, Memory]:
        """Take what layers 1..k make of a question and, apart from it, of its passages; and what a memory holds."""
        with watch("encode"):
            encoded = passages if isinstance(passages, Encoded) else self.encode_passages(passages, mode)
            refusals.check_encoded(encoded, mode, self.fingerprint)
            states = self.model.lower(*self._padded([question]))[0]
        with watch("expand"):
            streams, read = [states, self.model.normalised(states)], read_later(self.model, encoded.token_ids)
            parts, ids = (np.split(array, encoded.offsets[1:-1]) for array in (read, encoded.token_ids))
            lengths = [int(part.sum()) for part in parts]
            halves = Halves(streams, rebuilt(self.model, encoded, read), lengths, encoded.packed)
        return halves, Memory(len(question), tuple(halves.rows), tuple(titled(passages)), tuple(ids), tuple(parts))

    @torch.inference_mode()
    def pruning_samples(self, question: str, passages: Sequence[PassageText]) -> tuple[Tensor, Tensor]:
        """Return what `Pruner.fit` takes of a question: pruning features (N, D + 1), and what came of each, (N,).

        Raises:
            InputError: a reader without k, or as `answer`.
        """
        refusals.check_mode("binary", self.config)
        if not len(passages):
            raise InputError("no passages to look at; pass at least one")
        ids = self.question_ids(question)
        halves, held = self._apart(ids, passages, "binary", Stopwatch())
        scores = self._text.passage_score(in_batches(halves.rows, self._joiner(halves)), held)
        return pruning_features(self.model, halves).cpu(), scores

    def _joiner(self, halves: Halves) -> Callable[[list[int]], Tensor]:
        def join(batch: list[int]) -> Tensor:
            filled, lengths = halves.batch(batch)
            return self.model.join(filled[0], lengths, *filled[1:])

        return join

    def _full(self, Q: int, rows: list[list[int]], kept: KeptRows) -> Tensor:
        """Read rows of a question, the first Q tokens, and a passage together: memory (rows' tokens, D), end to end."""

        def full(batch: list[int]) -> Tensor:
            ids, lengths = self._padded([rows[i] for i in batch])
            return self.model.full(ids, lengths, torch.full_like(lengths, Q))

        return kept.encode("full", rows, [len(row) for row in rows], full)
