"""Asking a model, beside lm_eval's HFLM and beside the floor: `python benchmarks/evaluate.py`.

One model is asked the same prompts and choices by capcheck and by `lm_eval` (0.4.13, installed
beside it) at the batch size that is best for it, and their answers are compared item by item.
The floor is what no harness can do without: bare forward passes, at the best batch size, over the
distinct tokens, where what prompts share is counted once, and the head where tokens are scored; for
generated text, steps with a cache.

    python benchmarks/evaluate.py --data DATA                # a random Llama of 25 M parameters
    python benchmarks/evaluate.py --data DATA --size 110M
    python benchmarks/evaluate.py --data DATA --model reference
    python benchmarks/evaluate.py --data DATA --size 1B --device cuda --dtype bfloat16

DATA holds mmlu (dev_5shot.jsonl, test_2000.jsonl), lambada, nq_open and wikitext2.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from capcheck import load
from capcheck.backends.encoding import Row
from capcheck.backends.hf import HFBackend
from capcheck.backends.hub import ModelInfo
from capcheck.backends.memory import choose_batch_tokens
from capcheck.rows import read_file

SIZES = {  # hidden, inner, blocks, heads, vocabulary
    "25M": (512, 1376, 6, 8, 8192),
    "110M": (768, 2048, 12, 12, 16384),
    "1B": (2048, 5632, 20, 16, 32000),
}
SHAPES = ((1, 512), (2, 512), (4, 512), (16, 128), (32, 128))  # sequences, tokens
LARGE_SHAPES = (*SHAPES, (32, 512), (128, 128))  # of an accelerator
STEPS = (8, 32, 64)  # sequences that generate a token
LARGE_STEPS = (*STEPS, 128)
BATCHES = (1, 4, 8, 16, 32, 64)
LARGE_BATCHES = (*BATCHES, 128)
LETTERS = "ABCD"
ANSWER_TOKENS = 16

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """One kind of question: what is asked, and whether it is text to be generated."""

    name: str
    pairs: list[tuple[str, str]]
    kind: str = "pairs"


def workloads(data: Path, subjects: int, fits: Callable[[str], bool]) -> Iterator[Work]:
    """Yield the kinds of questions, as many of each as fit the model's context."""
    shots = _rows(data / "mmlu" / "dev_5shot.jsonl")
    test = _rows(data / "mmlu" / "test_2000.jsonl")
    names = [
        name
        for name in dict.fromkeys(row["subject"] for row in test)
        if fits(_header(shots, name, False) + "x " * 120)
        and sum(row["subject"] == name for row in test) >= 6
    ][:subjects]
    for letters in (False, True):
        pairs = []
        for name in names:
            asked = [row for row in test if row["subject"] == name]
            header = _header(shots, name, letters)
            whole = [row for row in asked if fits(header + _question(row, letters) + "x " * 60)]
            for row in whole[:6]:
                given = LETTERS if letters else row["choices"]
                pairs += [(header + _question(row, letters), f" {choice}") for choice in given]
        yield Work(f"5-shot choices, {'letters' if letters else 'full text'}", pairs)
    passages = [row["text"].rstrip() for row in _rows(data / "lambada" / "test.jsonl")]
    pairs = [(text.rpartition(" ")[0], f" {text.rpartition(' ')[2]}") for text in passages]
    yield Work(
        "plain log-likelihood", [pair for pair in pairs if fits("".join(pair))][: 16 * subjects]
    )
    asked = _rows(data / "nq_open" / "dev.jsonl")
    shown = "".join(f"Q: {row['question']}\nA: {row['answer'][0]}\n\n" for row in asked[:5])
    yield Work(
        "greedy answers, 5-shot",
        [(f"{shown}Q: {row['question']}\nA:", "") for row in asked[5 : 5 + 16 * subjects]],
        "generate",
    )
    texts = [str(row["text"]) for row, _ in read_file(data / "wikitext2" / "test.txt")]
    yield Work(
        "perplexity", [("", text) for text in texts if fits(text)][: 6 * subjects], "documents"
    )


def _rows(path: Path) -> Rows:
    return [dict(row) for row, _ in read_file(path)]


def _question(row: dict[str, Any], letters: bool) -> str:
    options = "".join(f"{a}. {b}\n" for a, b in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{options if letters else ''}Answer:"


def _header(shots: Rows, subject: str, letters: bool) -> str:
    parts = []
    for row in shots:
        if row["subject"] == subject:
            right = LETTERS[row["answer"]] if letters else row["choices"][row["answer"]]
            parts.append(f"{_question(row, letters)} {right}\n\n")
    return f"Questions about {subject.replace('_', ' ')}.\n\n" + "".join(parts)


def random_llama(size: str, data: Path) -> tuple[Any, Any]:
    """Return a Llama of random weights, and a tokenizer trained on the questions."""
    hidden, inner, blocks, heads, vocabulary = SIZES[size]
    core = Tokenizer(models.BPE(byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    files = [data / "mmlu" / "test_2000.jsonl", data / "wikitext2" / "test.txt"]
    core.train([str(path) for path in files], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    return transformers.LlamaForCausalLM(config).eval(), tokenizer


class Theirs:
    """lm_eval's HFLM at one batch size."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        from lm_eval.models.huggingface import HFLM

        device = str(model.device)
        self.lm = HFLM(model, tokenizer=tokenizer, batch_size=batch_size, device=device)
        # Rolling log-likelihoods put a BOS in front by themselves.
        self.rolling = HFLM(
            model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            device=device,
            add_bos_token=False,
            prefix_token_id=tokenizer.bos_token_id,
        )

    def __call__(self, work: Work) -> list[Any]:
        from lm_eval.api.instance import Instance

        kind = {
            "pairs": "loglikelihood",
            "generate": "generate_until",
            "documents": "loglikelihood_rolling",
        }[work.kind]
        until = {"until": ["\n"], "max_gen_toks": ANSWER_TOKENS, "do_sample": False}
        asked: list[tuple[Any, ...]] = {
            "pairs": work.pairs,
            "generate": [(prompt, until) for prompt, _ in work.pairs],
            "documents": [(text,) for _, text in work.pairs],
        }[work.kind]
        instances = [Instance(kind, {}, args, number) for number, args in enumerate(asked)]
        lm = self.rolling if work.kind == "documents" else self.lm
        found = getattr(lm, kind)(instances, disable_tqdm=True)
        return [one[0] if work.kind == "pairs" else one for one in found]


def ours(backend: HFBackend, work: Work) -> list[Any]:
    """Ask by capcheck."""
    if work.kind == "generate":
        return [str(a) for a in backend.generate([p for p, _ in work.pairs], ANSWER_TOKENS, ["\n"])]
    if work.kind == "documents":
        return [x.nats for x in backend.loglik_documents([text for _, text in work.pairs])]
    return [x.nats for x in backend.loglik(work.pairs)]


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the seconds it took."""
    synchronize()
    started = time.perf_counter()
    found = run()
    synchronize()
    return found, time.perf_counter() - started


def synchronize() -> None:
    """Wait for the accelerator, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fastest(runs: Sequence[Callable[[], Any]], repeats: int = 3) -> float:
    """Return the least seconds of several ways."""
    return min(timed(run)[1] for run in runs for _ in range(repeats))


class Floor:
    """Bare forward passes of a model, at the batch size that is best for it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vocabulary = model.get_input_embeddings().weight.shape[0]
        host = model.device.type == "cpu"
        self.steps = STEPS if host else LARGE_STEPS
        self.a_token = min(self._read(*shape) for shape in (SHAPES if host else LARGE_SHAPES))
        hidden = torch.zeros(512, model.get_input_embeddings().weight.shape[1]).to(
            model.lm_head.weight
        )
        with torch.inference_mode():
            self.a_logit = fastest([lambda: model.lm_head(hidden)]) / len(hidden)

    def seconds(self, backend: HFBackend, work: Work, found: list[Any]) -> float:
        """Return the seconds that the distinct tokens of a workload take."""
        encoder = backend.encoder
        if work.kind == "documents":
            rows = encoder.documents([text for _, text in work.pairs])
        elif work.kind == "pairs":
            rows = encoder.pairs(work.pairs)
        else:
            prompts = encoder.prompts([prompt for prompt, _ in work.pairs], ANSWER_TOKENS)
            rows = [Row([*row.ids, 0], len(row.ids), row.item) for row in prompts]
        seconds = len(_nodes(rows)) * self.a_token
        if work.kind != "generate":
            scored = {node for row in rows for node in _path(row)[row.start - 1 :]}
            seconds += len(scored) * self.a_logit
        if work.kind == "generate":
            new = sum(len(backend.tokenizer(text)["input_ids"]) for text in found)
            seconds += new * self._step(round(sum(len(r.ids) for r in rows) / len(rows)))
        return seconds

    def _read(self, rows: int, tokens: int) -> float:
        """Return the seconds a token takes in a batch of this shape."""
        ids = torch.randint(self.vocabulary, (rows, tokens), device=self.model.device)
        decoder = self.model.get_decoder()
        with torch.inference_mode():
            return fastest([lambda: decoder(input_ids=ids, use_cache=False)]) / (rows * tokens)

    def _step(self, length: int) -> float:
        """Return the seconds a generated token takes, after a prompt of this length."""
        best = float("inf")
        for rows in self.steps:
            ids = torch.randint(self.vocabulary, (rows, length), device=self.model.device)
            with torch.inference_mode():
                cache = self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

                def step(ids: Any = ids, cache: Any = cache) -> None:
                    self.model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)

                best = min(best, fastest([step]) / rows)
        return best


def _nodes(rows: Sequence[Row]) -> set[int]:
    """Return a number for every distinct beginning of the rows' inputs."""
    return {node for row in rows for node in _path(row)}


def _path(row: Row) -> list[int]:
    state, found = 0, []
    for token in row.ids[:-1]:
        state = hash((state, token))
        found.append(state)
    return found


def differences(work: Work, a: list[Any], b: list[Any]) -> str:
    """Say how far the answers of two harnesses are apart."""
    if work.kind == "generate":
        return f"{sum(x != y for x, y in zip(a, b, strict=True))} of {len(a)} texts"
    most = max(abs(x - y) for x, y in zip(a, b, strict=True))
    return f"{most:.1e} nats"


def chosen_batch_tokens(model: Any, parameters: int, args: argparse.Namespace) -> int:
    """Return the tokens of a batch that capcheck chooses for a model by itself."""
    info = ModelInfo(
        name="it",
        folder=None,
        commit=None,
        config=model.config.to_dict(),
        files=(),
        parameters=parameters,
        bytes=0,
        dtype=args.dtype,
    )
    return choose_batch_tokens(info, args.dtype, args.device)


def main() -> None:
    """Ask, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", help="a folder or 'reference', in place of a random one")
    parser.add_argument("--size", choices=SIZES, default="25M")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-tokens", type=int, help="as capcheck chooses by default")
    parser.add_argument("--subjects", type=int, default=8, help="of MMLU, with 6 questions each")
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--alone", action="store_true", help="without lm_eval")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if args.model:
        loaded = load(args.model, device=args.device, dtype=args.dtype)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        model, tokenizer = random_llama(args.size, args.data)
        model = model.to(args.device, getattr(torch, args.dtype))
    parameters = sum(p.numel() for p in model.parameters())
    tokens = args.batch_tokens or chosen_batch_tokens(model, parameters, args)
    backend = HFBackend(model, tokenizer, batch_tokens=tokens)
    limit = backend.encoder.context or 2**30
    floor = Floor(model)
    title = f"{args.model or 'random Llama'}, {parameters / 1e6:.1f} M parameters, {args.device}"
    title += f", batches of {tokens:,} tokens"
    table = Table(title=f"{title}, {args.dtype}: {1 / floor.a_token:,.0f} tokens a second at best")
    for name in ("", "asked", "floor s", "capcheck s", "of the floor", "lm_eval s", "batch"):
        table.add_column(name, justify="right" if name else "left")
    for name in ("lm_eval / capcheck", "lm_eval / floor", "answers differ by"):
        table.add_column(name, justify="right")
    lines = []
    for work in workloads(
        args.data, args.subjects, lambda text: backend.encoder.count(text) + 40 <= limit
    ):
        if args.only not in work.name:
            continue
        timed(lambda work=work: ours(backend, Work("", work.pairs[:8], work.kind)))  # warm
        found, seconds = timed(lambda work=work: ours(backend, work))
        least = floor.seconds(backend, work, found)
        line = {"work": work.name, "asked": len(work.pairs), "floor": least, "capcheck": seconds}
        if not args.alone:
            few = Work("", work.pairs[: max(8, len(work.pairs) // 4)], work.kind)
            tried = {}
            for size in BATCHES if args.device == "cpu" else LARGE_BATCHES:
                try:
                    asked = Theirs(model, tokenizer, size)
                    tried[size] = timed(lambda few=few, asked=asked: asked(few))[1]
                except torch.OutOfMemoryError:
                    break
            best = min(tried, key=lambda size: tried[size])
            theirs = Theirs(model, tokenizer, best)
            other, line["lm_eval"] = timed(lambda work=work, theirs=theirs: theirs(work))
            line |= {"batch": best, "differ": differences(work, found, other)}
        lines.append({**line, "title": title, "dtype": args.dtype})
        known = line.get("lm_eval")
        table.add_row(
            work.name,
            str(len(work.pairs)),
            f"{least:.2f}",
            f"{seconds:.2f}",
            f"{least / seconds:.0%}",
            *([f"{known:.2f}", str(line["batch"])] if known else ["", ""]),
            *([f"{known / seconds:.1f}", f"{known / least:.1f}"] if known else ["", ""]),
            str(line.get("differ", "")),
        )
    Console(width=150).print(table)
    if args.json:
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
