"""What a run would do."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from interpretune.analysis.memory_estimate import MemoryEstimate


@frozen
class DryRun:
    """What a run would do.

    Attributes:
        plan: The plan in words.
        folder: Where its store goes.
        batches: Batches of the split.
        remaining: Batches that are not there yet.
        examples: Rows.
        forwards: Forward passes of a batch that remain, replays not counted.
        bytes: Estimated size of the store.
        seconds: Estimated duration of what remains, evidence and circuit included.
        evidence: Parts of the evidence that remain to be gathered; their forwards are not counted.
        circuit: Parts of the circuit that remain, likewise.
        memory: What the largest batch takes, by device, estimated from the first.
    """

    plan: str
    folder: Path
    batches: int
    remaining: int
    examples: int
    forwards: float
    bytes: int
    seconds: float
    evidence: tuple[str, ...] = ()
    circuit: tuple[str, ...] = ()
    memory: tuple[MemoryEstimate, ...] = ()

    def __str__(self) -> str:
        evidence = f" and evidence ({', '.join(self.evidence).replace('_', '-')})" if self.evidence else ""
        gathered = evidence + (f" and a circuit ({', '.join(self.circuit)})" if self.circuit else "")
        return (
            f"{self.plan}\n\n{self.folder}\n{self.examples} rows in {self.batches} batches, {self.remaining} to run: "
            f"{self.forwards:g} forward passes of a batch beside replays{gathered}, about {self.seconds:.0f} s; "
            f"about {self.bytes / 1e6:.1f} MB when complete" + "".join(f"\n{item}" for item in self.memory)
        )
