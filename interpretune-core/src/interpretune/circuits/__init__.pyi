from interpretune.circuits.attributing import attribution_graph as attribution_graph
from interpretune.circuits.component_calls import (
    component_edges as component_edges,
    node_patching as node_patching,
    path_patching as path_patching,
)
from interpretune.circuits.component_results import ComponentEdges as ComponentEdges, PatchedNodes as PatchedNodes
from interpretune.circuits.curves import Faithfulness as Faithfulness, faithfulness as faithfulness
from interpretune.circuits.exact_edges import CircuitEdges as CircuitEdges, circuit_edges as circuit_edges
from interpretune.circuits.gathering import Circuit as Circuit, circuit_of as circuit_of
from interpretune.circuits.graph import AttributionGraph as AttributionGraph, LeftOut as LeftOut
from interpretune.circuits.graph_question import AttributionGraphs as AttributionGraphs
from interpretune.circuits.judging import JudgedMethods as JudgedMethods, judge_methods as judge_methods
from interpretune.circuits.node_calls import effects_on as effects_on
from interpretune.circuits.node_effects import NodeEffects as NodeEffects
from interpretune.circuits.searches import (
    NecessarySet as NecessarySet,
    SmallestSet as SmallestSet,
    SufficientSet as SufficientSet,
    smallest_set as smallest_set,
)
from interpretune.circuits.shapley import ShapleyValues as ShapleyValues, shapley_values as shapley_values
from interpretune.circuits.unit_sets import (
    PairEffects as PairEffects,
    SetEffects as SetEffects,
    pair_effects as pair_effects,
    set_effects as set_effects,
)
