"""The embedded model's tokenizer: byte-level BPE in which every invented name is two tokens.

A name is a beginning and an ending (`Kel` + `orin`). A tokenizer trained on plain text would merge
the names of the training split into single tokens and spell those of the suites in pieces, so that
the two would not look alike to the model. Here the halves stand apart while merges are learnt.
"""

from __future__ import annotations

import random
import re
from itertools import chain, islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from capcheck.tasks import names
from training.corpus import BOS, EOS, Corpus

APART = "\x00"


def make_tokenizer(seed: int, vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Learn a tokenizer that puts BOS in front of a text, once, and keeps every text whole.

    Args:
        seed: of the text it learns from.
        vocabulary: tokens, at least 258.
        context: the most tokens of a text, as the tokenizer's configuration names it.
    """
    bpe = Tokenizer(models.BPE())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(APART), "removed"), pieces]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(seed), trainer)
    bpe.pre_tokenizer = pieces
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _texts(seed: int) -> list[str]:
    corpus = Corpus(seed)
    rng = random.Random(seed)
    known = {
        name: f"{beginning}{APART}{ending}"
        for beginning, ending, name in chain.from_iterable(map(_halves, names.NAME_PIECES))
    }
    name = re.compile(r"\b(" + "|".join(sorted(known, key=len, reverse=True)) + r")\b")
    found = []
    for kind, page in corpus.kinds.items():
        items = islice(page(rng, 256), 6000 if kind in ("questions", "statements") else 1200)
        text = " ".join("".join(text for text, _ in item) for item in items)
        found.append(name.sub(lambda match: known[match[0]], text.replace(EOS + BOS, "\n")))
    return found


def _halves(pieces: tuple[str, str]) -> list[tuple[str, str, str]]:
    beginnings, endings = pieces[0].split(), pieces[1].split()
    return [(b, e, b + e) for b in beginnings for e in endings]
