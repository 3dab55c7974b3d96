"""Methods that approximate effects, held against exact ones on tasks, with units that fit each method."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from attrs import evolve, frozen

import interpretune as it
from benchmarks.questions import Asked
from benchmarks.transcoders import TrainedTranscoder, explained_variance, trained_transcoders
from benchmarks.workload import Workload
from interpretune.circuits import judge_methods
from interpretune.circuits.curves import curves_of
from interpretune.circuits.judging import held_against
from interpretune.circuits.rankings import NODE, by_unit
from interpretune.circuits.stored_result import rows_held_out
from interpretune.circuits.unit_pool import UnitPool
from interpretune.questions import PromptRow
from interpretune.questions.one_call import question_of
from interpretune.tasks import find_task

TOP = 20
"""Units of which the overlap is."""
COLUMNS = {
    "task": "task",
    "units": "units",
    "method": "method",
    "rank_correlation": "rank correlation",
    "sign_errors": "sign errors",
    "wrong_sign": "their part of the effects",
    "top_overlap": f"overlap of the top {TOP}",
    "nodes_for_80": "units for 80 %",
}
"""Of the table, with their titles."""
SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
"""Of circuits of components, of which each is a whole forward."""


@frozen(eq=False)
class Judge:
    """A task: its held-out rows are asked about, and its training rows judge the circuits.

    Attributes:
        asked: The rows that are asked about.
        others: Those that are not.
        options: Of the benchmark.
    """

    asked: Asked
    others: Sequence[PromptRow]
    options: argparse.Namespace

    @classmethod
    def of(cls, work: Workload, task: str, options: argparse.Namespace) -> Judge:
        """So many rows of each, with the first tokens of their answers as answers."""
        found = find_task(task)
        asked = Asked.of(work, found.held_out(options.rows))
        rows, others = (_first_tokens(asked.tokenizer, part) for part in (asked.rows, found.training(options.rows)))
        return cls(evolve(asked, rows=rows), others, options)

    @property
    def _who(self) -> tuple[Any, Any]:
        return self.asked.work.backend, self.asked.tokenizer

    def gradients(self, units: Any) -> pd.DataFrame:
        """Gradients and integrated gradients, units set to their mean over the rows at the answer position."""
        rows = self.asked.rows
        exact = it.effects(*self._who, rows, units=units, value="mean")
        methods: dict[str, Any] = {"gradient": "gradient"}
        for steps in (5, 10):
            asked = {"units": units, "value": "mean", "method": "integrated_gradients", "steps": steps}
            methods[f"integrated gradients, {steps} steps"] = it.effects(*self._who, rows, **asked)
        return judge_methods(exact, methods, held_out=self.others, top=TOP).to_pandas()

    def components(self) -> pd.DataFrame:
        """EAP and EAP-IG of heads, MLPs and the embedding, set to what they are in the corrupted prompts."""
        n = self.options.component_rows  # all components of all rows are whole forwards
        rows, others = self.asked.rows[:n], self.others[:n]
        exact = it.node_patching(*self._who, rows).to_pandas()
        nodes = it.component_edges(*self._who, rows, method=["eap", "eap_ig"]).nodes()
        unit = ["units", "unit"]
        numbers = {"exact": exact.groupby(unit, observed=True).effect.mean().reset_index()}
        for name in ("eap", "eap_ig"):
            numbers[name] = nodes.groupby(unit).mean(numeric_only=True)[name].rename("effect").reset_index()
        n_layers = self.asked.work.backend.n_layers
        names = ["layers.0.resid_pre", *(f"layers.{layer}.mlp_out" for layer in range(n_layers))]
        every = [it.Heads(), *map(it.Vector, names)]
        question = question_of(*self._who, rows, units=every, value="corrupted", positions="each")
        pool, unseen = UnitPool.of_all(question), rows_held_out(question, others, "answers", "correct")
        scores = {name: by_unit(frame, pool, n) for name, frame in numbers.items()}
        with question.held(), torch.no_grad():
            curves = curves_of(question, unseen, scores, [*SIZES, len(pool)], draws=0, seed=0)
        told = [
            {"method": name, **held_against(numbers["exact"], frame, TOP), "nodes_for_80": curves.nodes_for(0.8)[name]}
            for name, frame in numbers.items()
        ]
        return pd.DataFrame(told).replace({"method": {"eap": "EAP", "eap_ig": "EAP-IG, 5 steps"}})

    def graphs(self, transcoders: Sequence[TrainedTranscoder]) -> pd.DataFrame:
        """Linear effects of attribution graphs on the logit difference, over all paths, beside gradients; set to 0.

        They are held against each other at the latents that the graphs have, which are those of the most influence.
        """
        rows = self.asked.rows[: self.options.graph_rows]
        exact = self.asked.effects(list(transcoders), len(rows)).to_pandas()
        linear = pd.concat([self._linear(number, row, transcoders) for number, row in enumerate(rows)])
        there = exact.merge(linear[NODE], "inner", NODE)
        print(f"{len(there)} of {len(exact)} active latents at the last tokens are in the graphs", flush=True)
        gradient = it.effects(*self._who, rows, units=list(transcoders), method="gradient").to_pandas()
        methods = {"exact": there, "gradient": gradient, "attribution graph": linear}
        return pd.DataFrame([{"method": name, **held_against(there, frame, TOP)} for name, frame in methods.items()])

    def _linear(self, number: int, row: PromptRow, transcoders: Sequence[TrainedTranscoder]) -> pd.DataFrame:
        """What latents of the last token do to the logit difference in the graph of one row."""
        graph = it.attribution_graph(*self._who, row, transcoders=transcoders, max_nodes=self.options.graph_nodes)
        nodes, last = graph.nodes, len(graph.tokens) - 1
        here = torch.tensor(((nodes.kind == "latent") & (nodes.position == last)).to_numpy(copy=True))
        values = torch.tensor(nodes.activation.to_numpy(copy=True))
        passed = graph.adjacency * torch.where(
            torch.tensor((nodes.kind == "latent").to_numpy(copy=True)), 1 / values, 0
        )
        right, wrong = (nodes.unit[nodes.kind == "logit"] == int(i) for i in self.asked.answers[number])
        logits = (nodes.kind == "logit").to_numpy().nonzero()[0]
        weights = torch.zeros(len(nodes), dtype=torch.float64)
        weights[logits[right.to_numpy()]], weights[logits[wrong.to_numpy()]] = 1, -1
        # the sum over paths: (1 - passed)^-1 applied to edges, read at the logits alone
        through = torch.linalg.solve((torch.eye(len(nodes), dtype=torch.float64) - passed).T, weights)
        mine = nodes[here.numpy()]
        units = [name.rpartition(" latent ")[0] for name in mine.name]
        effect = (through @ graph.adjacency)[here]
        return pd.DataFrame(
            {"row": number, "position": last, "units": units, "unit": mine.unit.to_numpy(), "effect": effect.numpy()}
        )


def judged(work: Workload, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The table: a line for each task, kind of units and method."""
    judges = {task: Judge.of(work, task, options) for task in options.tasks}
    texts = [str(row.prompt) for task in options.tasks for row in find_task(task).training(options.graph_prompts)]
    tokenizer, asked = (
        Asked.of(work, []).tokenizer,
        [str(r.prompt) for item in judges.values() for r in item.asked.rows],
    )
    transcoders = trained_transcoders(work, tokenizer, texts, options)
    explained = ", ".join(f"{share:.2f}" for share in explained_variance(work, tokenizer, asked, transcoders))
    print(f"transcoders explain {explained} of the variance of what MLPs write at the last tokens", flush=True)
    kinds: dict[str, Callable[[Judge], pd.DataFrame]] = {
        "heads": lambda judge: judge.gradients(it.Heads()),
        "components, patched": Judge.components,
        "latents of two dictionaries": lambda judge: judge.gradients(work.dictionaries),
        f"latents of transcoders of the last {len(transcoders)} layers": lambda judge: judge.graphs(transcoders),
        f"neurons of layer {options.layer}": lambda judge: judge.gradients(it.Neurons(options.layer)),
    }
    found: list[dict[str, Any]] = []
    for units, measure in kinds.items():
        for task, judge in judges.items():
            table = measure(judge)
            lines = table.astype(object).where(table.notna(), None).to_dict("records")
            found += [{"task": task, "units": units, **_plain(line)} for line in lines]
            print(task, units, table.to_string(), sep="\n", flush=True)
    return sorted(found, key=lambda line: options.tasks.index(line["task"]))


def _first_tokens(tokenizer: Any, rows: Sequence[PromptRow]) -> list[PromptRow]:
    def first(text: str) -> str:
        return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)[:1]))

    return [evolve(row, answers=tuple(map(first, row.answers))) for row in rows]


def _plain(line: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): item.item() if hasattr(item, "item") else item for name, item in line.items()}
