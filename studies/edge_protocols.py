"""Edge and node protocols, executed: rounds and bits are counted, not computed by a formula.

Source: Rohatgi, Marwah, Lipton, Lu, Moitra, "Towards characterizing the value of edge embeddings in
Graph Neural Networks", arXiv 2410.09867, Theorems 1 and 4 and Appendix C. In round t

    edge protocol   P_t(e) = f_{t,e}((P_{t−1}(e'))_{e' ∈ M(e)}, I(e))
    node protocol   P_t(v) = f_{t,v}(P_{t−1}(v), (P_{t−1}(v'))_{v' ∈ N(v)}, (I(e))_{e ∈ M(v)})

where M(e) are the edges that share an endpoint with e, e included, and M(v) those at v. A state is
one of 2^B numbers, and P_0 = 0 everywhere: nothing is known before the first round, and there is no
extra "no message". After T rounds a vertex answers from the states of its edges, or from its own.

`simulate` is the reference: it runs any protocol and lets its round functions see nothing else. The
traces of a `Task` are the same protocols on arrays, for graphs of 10 000 vertices.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Any, Literal, NamedTuple

import numpy as np

Edge = tuple[int, int]  # (u, v) with u < v


class ProtocolError(RuntimeError):
    """A protocol did what its model forbids: it read too far, or wrote too much."""


class Seen(dict):
    """Values by place, of those places alone that the model lets a round function see."""

    def __missing__(self, place: Any) -> Any:
        raise ProtocolError(
            f"a round function read the state or input of {place}, but its model shows it only "
            f"{sorted(self)}: let the value travel there first"
        )


@dataclass(frozen=True)
class Graph:
    """Vertices 0 … `vertices` − 1 and edges (u, v), u < v; the order of both is that of traces."""

    vertices: int
    edges: tuple[Edge, ...]

    @cached_property
    def edges_at(self) -> dict[int, list[Edge]]:
        """M(v) of every vertex."""
        at = {vertex: [] for vertex in range(self.vertices)}
        for edge in self.edges:
            for vertex in edge:
                at[vertex].append(edge)
        return at

    def near_edge(self, edge: Edge) -> set[Edge]:
        """M(e): the edges that share an endpoint with `edge`, itself included."""
        return {near for vertex in edge for near in self.edges_at[vertex]}

    def near_vertex(self, vertex: int) -> set[int]:
        """N(v): the vertices joined to `vertex`, itself not included."""
        return {end for edge in self.edges_at[vertex] for end in edge} - {vertex}


@dataclass(frozen=True)
class Protocol:
    """T rounds of at most B bits; its functions are made from the graph, never from the input.

    `step(t, place, own, states, given)` returns the next state of an edge or vertex: `own` is its
    last state, `states` those of M(e) or N(v), and `given` is I(e), or the inputs of the edges at
    v. `output(vertex, state)` is the answer of a vertex: `state` is its own, or those of its edges.
    Places are known, and states and inputs come by place (`Seen`). In a symmetric protocol all
    places run the same function: `place` and `vertex` are None, and what is seen is a multiset
    (`Counter`).
    """

    over: Literal["edges", "vertices"]
    rounds: int
    bits: int
    step: Callable[[int, Any, int, Any, Any], int]
    output: Callable[[Any, Any], int]
    symmetric: bool = False


class Execution(NamedTuple):
    """What a protocol did: answers [V], rounds, most bits that a state used, states by round."""

    outputs: list[bool]
    rounds: int
    bits: int
    states: list[dict[Any, int]]


def simulate(protocol: Protocol, graph: Graph, inputs: Mapping[Edge, int]) -> Execution:
    """Run a protocol round by round, as its model has it; edges not in `inputs` have input None.

    Raises ProtocolError where a round function reads a place that is not a neighbour, or returns
    anything but an int in [0, 2^B).
    """

    def show(values: dict) -> Seen | Counter:
        return Counter(values.values()) if protocol.symmetric else Seen(values)

    def name(place: Any) -> Any:
        return None if protocol.symmetric else place

    def given(place: Any) -> Any:  # made anew each round, lest a protocol keep notes in it
        if protocol.over == "edges":
            return inputs.get(place)
        return show({edge: inputs.get(edge) for edge in graph.edges_at[place]})

    if protocol.over == "edges":
        near = {edge: graph.near_edge(edge) for edge in graph.edges}
    else:
        near = {vertex: graph.near_vertex(vertex) for vertex in range(graph.vertices)}

    states, trace = dict.fromkeys(near, 0), []
    for t in range(1, protocol.rounds + 1):
        states = {
            place: protocol.step(
                t, name(place), states[place], show({q: states[q] for q in seen}), given(place)
            )
            for place, seen in near.items()
        }
        for place, state in states.items():
            if not (isinstance(state, int) and 0 <= state < 2**protocol.bits):
                raise ProtocolError(
                    f"expected states of {protocol.bits} bits, got {state!r} at {place} in round "
                    f"{t}: use fewer values or declare more bits"
                )
        trace.append(states)

    def final(vertex: int) -> Any:
        if protocol.over == "vertices":
            return states[vertex]
        return show({edge: states[edge] for edge in graph.edges_at[vertex]})

    outputs = [bool(protocol.output(name(v), final(v))) for v in range(graph.vertices)]
    bits = max(bits_of(max(states.values())) for states in trace)
    return Execution(outputs, len(trace), bits, trace)


def count(trace: Iterable[np.ndarray]) -> tuple[np.ndarray, int, int]:
    """Execute a trace: the states after the last round, rounds, most bits that a state used."""
    states, rounds, bits = np.array(0), 0, 0
    for states in trace:
        rounds, bits = rounds + 1, max(bits, bits_of(states.max()))
    return states, rounds, bits


def bits_of(state: int) -> int:
    """Bits of the largest state; a state takes one bit even where it is always 0."""
    return max(1, int(state).bit_length())


class Task(ABC):
    """A question on a graph of about n vertices, its protocols, and a bound for node protocols.

    `drawn` stands for an input as arrays. The traces yield one array of states a round: over
    `graph.edges` or vertices in their order, or, where a subclass says so, a matrix by endpoints.
    """

    graph: Graph
    asked: slice  # the vertices whose answer counts
    node_bound: float  # every node protocol has T·B ≥ this
    edge_protocol: Protocol
    node_protocol: Protocol

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Any:
        """A random input."""

    @abstractmethod
    def inputs(self, drawn: Any) -> dict[Edge, int]:
        """The same input as I(e), for `simulate`."""

    @abstractmethod
    def answer(self, drawn: Any) -> np.ndarray:
        """The right answers, bool [asked], without any protocol."""

    @abstractmethod
    def edge_trace(self, drawn: Any) -> Iterator[np.ndarray]:
        """The states of `edge_protocol`, round by round."""

    @abstractmethod
    def edge_outputs(self, states: np.ndarray) -> np.ndarray:
        """The answers, bool [asked], that vertices read from their edges."""

    @abstractmethod
    def node_trace(self, drawn: Any) -> Iterator[np.ndarray]:
        """The states of `node_protocol`, round by round, each [V]."""

    @abstractmethod
    def node_outputs(self, states: np.ndarray) -> np.ndarray:
        """The answers, bool [asked], that vertices read from their own states."""


class Paths(Task):
    """Theorem 1: the MAP assignment of a graphical model on s = ⌊√n⌋ paths of s vertices and a hub.

    Spins x = ±1; score Σ x_j x_{j+1} along the paths + Σ_i a_i x_{i,1}, where the sign a_i is part
    of the potential of the first edge of path i; the hub's edges have potential 0. Turning any spin
    away from a_i loses more than it wins, so the MAP has x_{i,j} = a_i for all j, and the hub is
    free. Vertex (i, j) is i·s + j, the hub s²; an input is bool [s], True for +1.

    Edge protocol: the first edges write their sign, the first hub edge of each path reads it, and
    all hub edges of the path read that one through the hub. Node protocol: the sign walks along.

    Node bound T·B ≥ s − 1: a walking sign needs T ≥ s − 1. If T < s − 1, the s last vertices learn
    the s signs from nothing but the hub's states of rounds 1 … T − 1, whence (T − 1)·B ≥ s.
    """

    def __init__(self, n: int):
        self.side = side = isqrt(n)
        self.hub = hub = side**2
        path_edges = [(v, v + 1) for v in range(hub) if (v + 1) % side]
        self.graph = Graph(hub + 1, (*path_edges, *((v, hub) for v in range(hub))))
        self.asked = slice(0, hub)
        self.node_bound = float(side - 1)
        self.edge_protocol = Protocol("edges", 3, 1, self._edge_step, self._edge_output)
        self.node_protocol = Protocol("vertices", side - 1, 1, self._node_step, lambda _, own: own)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        return rng.random(self.side) < 0.5

    def inputs(self, drawn: np.ndarray) -> dict[Edge, int]:
        return {(i * self.side, i * self.side + 1): int(sign) for i, sign in enumerate(drawn)}

    def score(self, spins: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """What a MAP assignment maximises: [...] for the paths' spins ±1 [..., s, s]."""
        couplings = (spins[..., 1:] * spins[..., :-1]).sum((-1, -2))
        return couplings + (spins[..., 0] * np.where(drawn, 1, -1)).sum(-1)

    def answer(self, drawn: np.ndarray) -> np.ndarray:
        return np.repeat(drawn, self.side)

    def _edge_step(self, t: int, edge: Edge, own: int, states: Any, given: int | None) -> int:
        u, v = edge
        if t == 1:
            return given or 0
        if v != self.hub:
            return 0
        if t == 2:
            return states[u, u + 1] if u % self.side == 0 else 0
        return states[u - u % self.side, v]

    def _edge_output(self, vertex: int, states: Any) -> int:
        return vertex != self.hub and states[vertex, self.hub]

    def edge_trace(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        first, hub = np.zeros((2, self.side, self.side), dtype=bool)
        first[:, 0] = drawn
        yield self._over_edges(first, hub)
        hub[:, 0] = first[:, 0]
        first = np.zeros_like(first)
        yield self._over_edges(first, hub)
        yield self._over_edges(first, np.broadcast_to(hub[:, :1], hub.shape))

    def _over_edges(self, path: np.ndarray, hub: np.ndarray) -> np.ndarray:
        return np.concatenate([path[:, :-1].ravel(), hub.ravel()])

    def edge_outputs(self, states: np.ndarray) -> np.ndarray:
        return states[-self.hub :]

    def _node_step(self, t: int, vertex: int, own: int, states: Any, given: Any) -> int:
        if vertex == self.hub:
            return 0
        start, j = vertex - vertex % self.side, vertex % self.side
        return given[start, start + 1] if j <= 1 else states[vertex - 1]

    def node_trace(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        states = np.zeros((self.side, self.side), dtype=bool)
        for _ in range(self.side - 1):
            states = np.concatenate([drawn[:, None], drawn[:, None], states[:, 1:-1]], axis=1)
            yield np.append(states, False)

    def node_outputs(self, states: np.ndarray) -> np.ndarray:
        return states[:-1]


class Tree(Task):
    """Theorem 4: who shares a value, on the m-ary tree of depth 2, m = ⌊√n⌋, under symmetry.

    The page at hand states the theorem without its task; this reconstruction is ours. Child u of
    the root has a value c_u in 1 … m, in unary: c_u of its m leaf edges carry a 1. Child u must say
    whether another child has the same value. Root edges have no input. Functions see multisets and
    are the same everywhere. The root is vertex 0, its children 1 … m; an input is bool [m, m].

    Edge protocol: leaf edges write their bit, root edges count them, and each root edge looks for
    its value among the others. (With P_0 = 0 the leaves would know a round later.) Node protocol:
    in slot r the children with value 3r + 1, 3r + 2 or 3r + 3 say which, in two bits; the root
    answers with the mask of those said twice, and the children keep their answer in the third bit.

    Node bound T·B ≥ ⌊2m/3⌋ + 1, with or without symmetry: give children 1 … w = ⌊2m/3⌋ the values
    1 … w, fixed, and let the m − w others have exactly the values D ⊆ {1 … w}, D not empty and of
    at most m − w ≥ w/2 values: at least 2^(w − 1) sets. The answers of children 1 … w spell D, and
    depend on D through nothing but the root's states of rounds 2 … T − 1, as in round 1 the root
    has seen nothing. So (T − 2)·B ≥ w − 1, and B ≥ 1.
    """

    slot = 3  # the least number of values whose mask leaves a child room for its answer bit

    def __init__(self, n: int):
        self.arity = m = isqrt(n)
        leaf_edges = [(u, 1 + m * u + leaf) for u in range(1, m + 1) for leaf in range(m)]
        self.graph = Graph(1 + m + m**2, (*((0, u) for u in range(1, m + 1)), *leaf_edges))
        self.asked = slice(1, m + 1)
        self.node_bound = float(2 * m // 3 + 1)
        self.edge_protocol = Protocol(
            "edges", 3, m.bit_length(), self._edge_step, self._edge_output, symmetric=True
        )
        slots = -(-m // self.slot)
        self.node_protocol = Protocol(
            "vertices", slots + 2, self.slot, self._node_step, self._node_output, symmetric=True
        )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        values = rng.integers(1, self.arity + 1, size=(self.arity, 1))
        return rng.permuted(np.arange(self.arity) < values, axis=1)

    def inputs(self, drawn: np.ndarray) -> dict[Edge, int]:
        leaf_edges = self.graph.edges[self.arity :]
        return dict(zip(leaf_edges, drawn.ravel().astype(int).tolist(), strict=True))

    def answer(self, drawn: np.ndarray) -> np.ndarray:
        values = drawn.sum(1)
        return (values[:, None] == values).sum(1) > 1

    def _edge_step(self, t: int, _: None, own: int, states: Counter, given: int | None) -> int:
        if t == 1:
            return given or 0
        if given is not None:  # leaf edges fall silent
            return 0
        return sum(states.elements()) if t == 2 else int(states[own] > 1)

    def _edge_output(self, _: None, states: Counter) -> int:
        return states[1]  # at a child; those that are not asked answer as well

    def edge_trace(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        root, silent = np.zeros(self.arity, dtype=np.int64), np.zeros(drawn.size, dtype=np.int64)
        yield np.concatenate([root, drawn.ravel()])
        root = drawn.sum(1)
        yield np.concatenate([root, silent])
        yield np.concatenate([np.bincount(root)[root] > 1, silent])

    def edge_outputs(self, states: np.ndarray) -> np.ndarray:
        return states[: self.arity] > 0

    def _node_step(self, t: int, _: None, own: int, states: Counter, given: Counter) -> int:
        if given[None] == 0:  # a leaf
            return 0
        if given[None] == given.total():  # the root
            said = Counter(state & 3 for state in states.elements())
            return sum(1 << k for k in range(self.slot) if said[k + 1] > 1)
        r, k = divmod(given[1] - 1, self.slot)
        say = k + 1 if t == r + 1 else 0
        shared = sum(states.elements()) >> k & 1 if t == r + 3 else 0  # the leaves say nothing
        return say | own & 4 | shared << 2

    def _node_output(self, _: None, own: int) -> int:
        return own >> 2

    def node_trace(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        r, k = np.divmod(drawn.sum(1) - 1, self.slot)
        root, children = np.zeros(1, dtype=np.int64), np.zeros(self.arity, dtype=np.int64)
        silent = np.zeros(drawn.size, dtype=np.int64)
        for t in range(1, self.node_protocol.rounds + 1):
            said = np.bincount(children & 3, minlength=self.slot + 1)[1:]
            shared = (t == r + 3) & (root >> k)
            children = np.where(t == r + 1, k + 1, 0) | children & 4 | shared << 2
            root = ((said > 1) << np.arange(self.slot)).sum(keepdims=True)
            yield np.concatenate([root, children, silent])

    def node_outputs(self, states: np.ndarray) -> np.ndarray:
        return states[self.asked] >> 2 > 0


class Complete(Task):
    """Appendix C: do two graphs share an edge, on the complete graph of n = 2h vertices.

    The page at hand states the result without its task; this reconstruction is ours. Edges within
    the first half of the vertices and within the second carry a bit, that is, a graph on each half;
    every vertex must say whether the two, matched by i ↔ i' = i + h, have an edge in common. An
    input is two symmetric matrices, bool [2, h, h]; half of the random ones share exactly one edge.
    The states of edges are a symmetric matrix [n, n] by endpoints.

    Edge protocol: edge {i, j} writes its bit, {i, j'} and {j, i'} read it, {i', j'} joins it to its
    own, every edge that touches a common one writes 1, and so every vertex has an edge that says 1.
    Node protocol: in round t vertex i says the bit of {i, i + t}, to vertex i', which keeps in mind
    whether one was common; h/2 rounds say all of them, and two more gather.

    Node bound T·B ≥ (n − 2)/8 + 1/n + 1: the halves decide the disjointness of sets of N = h(h−1)/2
    possible edges, and both know the answer. Each transcript is a rectangle of constant answer; the
    disjointness matrix has rank 2^N, so there are 2^N transcripts of "disjoint" and one other at
    least. A transcript is the n states of rounds 1 … T − 1: (T − 1)·n·B ≥ N + 1, and B ≥ 1.
    """

    def __init__(self, n: int):
        self.half = half = n // 2
        self.vertices = 2 * half
        self.asked = slice(0, self.vertices)
        pairs = half * (half - 1) // 2
        self.node_bound = (pairs + 1) / self.vertices + 1
        self.edge_protocol = Protocol("edges", 4, 1, self._edge_step, self._edge_output)
        self.node_protocol = Protocol(
            "vertices", half // 2 + 2, 1, self._node_step, lambda _, own: own
        )

    @cached_property
    def graph(self) -> Graph:  # pyright: ignore[reportIncompatibleVariableOverride]
        # Made only where it is walked: n²/2 tuples.
        return Graph(
            self.vertices,
            tuple((u, v) for u in range(self.vertices) for v in range(u + 1, self.vertices)),
        )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        bits = rng.integers(0, 4, size=(self.half, self.half), dtype=np.uint8)
        first, second = bits == 1, bits == 2  # disjoint, with 0 and 3 in neither
        if rng.random() < 0.5:
            i, j = np.sort(rng.choice(self.half, size=2, replace=False))
            first[i, j] = second[i, j] = True
        upper = np.triu(np.stack([first, second]), 1)
        return upper | upper.swapaxes(1, 2)

    def inputs(self, drawn: np.ndarray) -> dict[Edge, int]:
        return {
            (i + shift, j + shift): int(bits[i, j])
            for shift, bits in zip((0, self.half), drawn, strict=True)
            for j in range(self.half)
            for i in range(j)
        }

    def answer(self, drawn: np.ndarray) -> np.ndarray:
        return np.full(self.vertices, (drawn[0] & drawn[1]).any())

    def _edge_step(self, t: int, edge: Edge, own: int, states: Any, given: int | None) -> int:
        u, v = edge
        if t == 1:
            return (given or 0) if v < self.half else 0
        if t == 2:
            partner = v - self.half
            crosses = u < self.half <= v and u != partner
            return states[min(u, partner), max(u, partner)] if crosses else 0
        if t == 3:
            return states[u - self.half, v] & given if u >= self.half else 0
        return int(any(states.values()))

    def _edge_output(self, vertex: int, states: Any) -> int:
        return any(states.values())

    def edge_trace(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        half = self.half
        states = np.zeros((self.vertices, self.vertices), dtype=bool)
        states[:half, :half] = drawn[0]
        yield states
        crossing = states[:half, :half]
        states = np.zeros_like(states)
        states[:half, half:] = crossing
        states[half:, :half] = crossing.T
        yield states
        common = states[:half, half:] & drawn[1]
        states = np.zeros_like(states)
        states[half:, half:] = common
        yield states
        touched = np.asarray(states.any(1))
        states = touched[:, None] | touched
        np.fill_diagonal(states, False)
        yield states

    def edge_outputs(self, states: np.ndarray) -> np.ndarray:
        return np.asarray(states.any(1))

    def _node_step(self, t: int, vertex: int, own: int, states: Any, given: Any) -> int:
        half, gathers = self.half, t == self.node_protocol.rounds
        if gathers:
            return own | any(states[v] for v in range(half, 2 * half) if v != vertex)
        speaks, i = vertex < half, vertex % half
        if speaks and t <= half // 2:
            j = (i + t) % half
            return given[min(i, j), max(i, j)]
        if speaks or t == 1:
            return 0
        j = half + (i + t - 1) % half
        return own | states[i] & given[min(vertex, j), max(vertex, j)]

    def node_trace(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        half, last = self.half, self.node_protocol.rounds
        said, common = np.zeros((2, half), dtype=bool)
        i = np.arange(half)
        for t in range(1, last):
            if t > 1:
                common = common | said & drawn[1][i, (i + t - 1) % half]
            said = drawn[0][i, (i + t) % half] if t <= half // 2 else np.zeros_like(said)
            yield np.concatenate([said, common])
        yield np.full(self.vertices, common.any())

    def node_outputs(self, states: np.ndarray) -> np.ndarray:
        return states


TASKS: dict[str, Callable[[int], Task]] = {"paths": Paths, "tree": Tree, "complete": Complete}
INSTANCES = 4  # random inputs a size


def measure(
    task: Literal["paths", "tree", "complete"], sizes: Sequence[int], seed: int
) -> dict[str, dict]:
    """Execute both protocols of a task on random inputs, and set them against the node bound.

    `sizes` are numbers n of vertices, at least 4 each and two different ones, for the slopes. A
    rounds × bits is the product of what was counted, the largest over the inputs of a size.

    Returns {"test": …, "curves": …}. "curves" are lists over sizes. "test" are floats: solved and
    node_solved (share of inputs where every asked vertex of the edge or node protocol was right;
    constant_solved: what the better constant answer gets), edge_rounds (largest), edge_bits (at the
    largest n), edge_growth and bound_growth (slopes of log rounds × bits and of the log of the
    bound against log n), bound_over_edge (at the largest n) and node_protocol_over_bound (smallest;
    below 1, bound or protocol would be wrong). The same seed gives the same numbers.

    Raises ValueError for an unknown task or for sizes that are too small or too few.
    """
    if task not in TASKS:
        raise ValueError(f"expected a task among {sorted(TASKS)}, got {task!r}: name one of these")
    if min(sizes, default=0) < 4 or len(set(sizes)) < 2:
        raise ValueError(
            f"expected two different sizes of at least 4 vertices, got {list(sizes)}: add sizes"
        )
    curves: dict[str, list] = {
        "n": [],
        "edge rounds × bits": [],
        "node lower bound": [],
        "node protocol rounds × bits": [],
        "edge rounds": [],
        "edge bits": [],
    }
    right, node_right, constant_right = [], [], []
    for n in map(int, sizes):
        built = TASKS[task](n)
        edge, node = [], []  # (rounds, bits) of each input
        for instance in range(INSTANCES):
            drawn = built.draw(np.random.default_rng([seed, n, instance]))
            answer = built.answer(drawn)
            constant_right.append([answer.all(), not answer.any()])
            states, *counted = count(built.edge_trace(drawn))
            edge.append(counted)
            right.append(np.array_equal(built.edge_outputs(states), answer))
            states, *counted = count(built.node_trace(drawn))
            node.append(counted)
            node_right.append(np.array_equal(built.node_outputs(states), answer))
        rounds, bits = np.max(edge, axis=0).tolist()
        row = (n, rounds * bits, built.node_bound, int(np.prod(node, axis=1).max()), rounds, bits)
        for curve, value in zip(curves.values(), row, strict=True):
            curve.append(value)

    _, edge_cost, bound, node_cost, edge_rounds, edge_bits = map(np.array, curves.values())
    largest = int(np.argmax(curves["n"]))
    log_n = np.log(curves["n"])
    test = {
        "solved": np.mean(right),
        "node_solved": np.mean(node_right),
        "constant_solved": np.mean(constant_right, axis=0).max(),
        "edge_rounds": edge_rounds.max(),
        "edge_bits": edge_bits[largest],
        "edge_growth": np.polyfit(log_n, np.log(edge_cost), 1)[0],
        "bound_growth": np.polyfit(log_n, np.log(bound), 1)[0],
        "bound_over_edge": bound[largest] / edge_cost[largest],
        "node_protocol_over_bound": (node_cost / bound).min(),
    }
    return {"test": {name: float(value) for name, value in test.items()}, "curves": curves}
