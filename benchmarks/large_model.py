"""What curvature of a language model of 135 million parameters takes: ``python -m benchmarks.large_model`` writes seconds and peak memory.

The architecture and size of SmolLM2-135M with random weights, in float32, on 8 sequences of 128 tokens: the largest eigenvalue of the
Hessian and its trace. Minutes and gigabytes, so no part of ``python -m benchmarks``. Needs `transformers` (extra ``lm``).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.__main__ import machine
from theorylab.core.problem import Problem
from theorylab.instruments.curvature import ggn, hessian
from theorylab.linalg.lanczos import eigs
from theorylab.linalg.trace import trace


def language_model(layers: int) -> nn.Module:
    """SmolLM2-135M's configuration with ``layers`` blocks, randomly initialized."""
    sys.modules.setdefault("torchvision", None)  # a text model needs none, and a broken installation of it would stop the import
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    )


def peak() -> float:
    """Most memory that this process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def words(row: dict[str, Any]) -> str:
    """What a measurement gave, in words."""
    result = {"largest eigenvalue": "residual", "trace": "stderr"}.get(row["what"])
    if result is None:
        return f"{row['parameters']:,} parameters" if "parameters" in row else ""
    kind = "residual" if result == "residual" else "standard error"
    return f"{row['value']:.3g}, {kind} {row[result]:.2g}, after {row['products']} products"


def table(rows: list[dict[str, Any]], about: dict[str, str]) -> str:
    """The measurements as Markdown."""
    lines = [
        ", ".join(f"{k}: {v}" for k, v in about.items()),
        "",
        "| measurement | result | seconds | peak GiB so far |",
        "|---|---|---:|---:|",
    ]
    lines += [f"| {r['what']} | {words(r)} | {r['seconds']} | {r['peak_gib']:.1f} |" for r in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print a JSON object a line, as each measurement ends, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", choices=("hessian", "ggn"), default="hessian")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--products", type=int, default=12, help="at most, for the eigenvalue (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=4, help="of the trace (default: %(default)s)")
    parser.add_argument("--memory", type=float, default=1.0, help="GiB that kept graphs may take (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the table (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []

    def report(what: str, start: float, **values: object) -> None:
        rows.append({"what": what, "seconds": round(time.perf_counter() - start), "peak_gib": round(peak(), 2), **values})
        print(json.dumps(rows[-1]), flush=True)
        (args.out / "large_model.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
        (args.out / "large_model.md").write_text(table(rows, machine()), encoding="utf-8")

    start = time.perf_counter()
    tokens = torch.randint(0, 49152, (args.sequences, args.tokens), generator=torch.Generator().manual_seed(1))
    problem = Problem.from_hf(language_model(args.layers), {"input_ids": tokens, "labels": tokens})
    report("model and problem", start, parameters=problem.P)
    start = time.perf_counter()
    problem.gradient()
    report("gradient", start)
    start = time.perf_counter()
    A = {"hessian": hessian, "ggn": ggn}[args.matrix](problem, memory=round(args.memory * 2**30))
    report(f"{args.matrix} operator", start)
    start = time.perf_counter()
    found = eigs(A, k=1, which="LA", tol=1e-2, max_matvecs=args.products)
    report("largest eigenvalue", start, value=float(found.values[0]), residual=float(found.residuals[0]), products=found.n_matvecs)
    del found
    start = time.perf_counter()
    estimate = trace(A, n=args.probes, method="hutchinson")
    report("trace", start, value=estimate.value, stderr=estimate.stderr, products=args.probes)


if __name__ == "__main__":
    main()
