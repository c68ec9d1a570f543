"""Protocols see no more than their model shows, answer right, and cost what is said of them."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from math import comb

import numpy as np
import pytest

from studies.edge_protocols import (
    TASKS,
    Complete,
    Graph,
    Paths,
    Protocol,
    ProtocolError,
    Tree,
    count,
    measure,
    simulate,
)

PATH = Graph(5, ((0, 1), (1, 2), (2, 3), (3, 4)))


def every_input(task):
    """All inputs of a tiny task."""
    if isinstance(task, Paths):
        return [np.array(signs) for signs in product([False, True], repeat=task.side)]
    if isinstance(task, Tree):
        values = product(range(1, task.arity + 1), repeat=task.arity)
        return [np.arange(task.arity) < np.array(value)[:, None] for value in values]
    graphs = []
    for bits in product([False, True], repeat=task.half * (task.half - 1) // 2):
        upper = np.zeros((task.half, task.half), dtype=bool)
        upper[np.triu_indices(task.half, 1)] = bits
        graphs.append(upper | upper.T)
    return [np.stack(pair) for pair in product(graphs, repeat=2)]


TINY = [Paths(9), Tree(9), Complete(6)]
SMALL = [Paths(16), Paths(30), Tree(4), Tree(25), Tree(60), Complete(4), Complete(10), Complete(15)]


def name(task):
    return f"{type(task).__name__}-{task.graph.vertices}"


def protocols(task):
    return {"edges": task.edge_protocol, "vertices": task.node_protocol}


def is_right(task, protocol, drawn):
    outputs = simulate(protocol, task.graph, task.inputs(drawn)).outputs
    return outputs[task.asked] == task.answer(drawn).tolist()


def quiet(over, step, bits=1, **kwargs):
    return Protocol(over, 2, bits, step, lambda vertex, state: 0, **kwargs)


@pytest.mark.parametrize(
    ("over", "peek"),
    [
        ("edges", lambda t, place, own, states, given: states[2, 3] if place == (0, 1) else 0),
        ("edges", lambda t, place, own, states, given: states[place[0], place[0] + 2]),
        ("vertices", lambda t, place, own, states, given: states[2] if place == 0 else 0),
        ("vertices", lambda t, place, own, states, given: given[2, 3] if place == 0 else 0),
    ],
    ids=["far edge", "no edge", "far vertex", "far input"],
)
def test_a_round_function_cannot_read_beyond_its_neighbours(over, peek):
    with pytest.raises(ProtocolError, match="shows it only"):
        simulate(quiet(over, peek), PATH, {(2, 3): 1})


def test_an_output_cannot_read_beyond_the_edges_of_its_vertex():
    protocol = Protocol("edges", 1, 1, lambda *_: 0, lambda vertex, states: states[1, 2])
    with pytest.raises(ProtocolError, match=r"\(1, 2\)"):
        simulate(protocol, PATH, {})


@pytest.mark.parametrize("state", [4, -1, None, 1.0])
def test_a_state_must_fit(state):
    with pytest.raises(ProtocolError, match="2 bits"):
        simulate(quiet("edges", lambda t, *_: state if t == 2 else 3, bits=2), PATH, {})


def test_what_a_round_function_sees():
    seen = {}

    def step(t, place, own, states, given):
        seen[t, place] = (own, dict(states), given)
        return t

    simulate(quiet("edges", step, bits=2), PATH, {(1, 2): 1})
    assert seen[1, (1, 2)] == (0, {(0, 1): 0, (1, 2): 0, (2, 3): 0}, 1)
    assert seen[2, (3, 4)] == (1, {(2, 3): 1, (3, 4): 1}, None)
    simulate(quiet("vertices", step, bits=2), PATH, {(1, 2): 1})
    assert seen[2, 1] == (1, {0: 1, 2: 1}, {(0, 1): None, (1, 2): 1})
    seen.clear()
    simulate(quiet("vertices", step, bits=2, symmetric=True), PATH, {(1, 2): 1})
    assert set(seen) == {(1, None), (2, None)}, "symmetric functions know no places"


def test_symmetric_functions_see_multisets():
    seen = []

    def step(t, place, own, states, given):
        seen.append((states, given))
        return 1

    simulate(quiet("vertices", step, symmetric=True), PATH, {(1, 2): 1})
    assert seen[-4] == (Counter({1: 2}), Counter({None: 1, 1: 1}))


def test_inputs_are_no_notebook():
    def step(t, place, own, states, given):
        found = "note" in given
        given["note"] = states["note"] = 1
        return int(found)

    assert not any(simulate(quiet("vertices", step), PATH, {}).states[-1].values())


@pytest.mark.parametrize("side", [2, 3])
def test_the_answer_is_the_map_assignment(side):
    task = Paths(side**2)
    spins = np.array(list(product([-1, 1], repeat=side**2))).reshape(-1, side, side)
    for drawn in every_input(task):
        score = task.score(spins, drawn)
        best = spins[score == score.max()]
        assert len(best) == 1, "the MAP of the paths is unique"
        assert np.array_equal(best.ravel() > 0, task.answer(drawn))


def test_the_answers_of_the_tree_and_of_the_complete_graph():
    leaves = np.array([[0, 1, 0], [1, 1, 1], [1, 0, 0]], dtype=bool)
    assert Tree(9).answer(leaves).tolist() == [True, False, True]
    graphs = np.zeros((2, 3, 3), dtype=bool)
    graphs[0, [0, 1], [1, 0]] = graphs[1, [1, 2], [2, 1]] = True
    assert not Complete(6).answer(graphs).any()
    graphs[1, [0, 1], [1, 0]] = True
    assert Complete(6).answer(graphs).all()


@pytest.mark.parametrize("task", TINY, ids=name)
@pytest.mark.parametrize("over", ["edges", "vertices"])
def test_protocols_answer_every_input(task, over):
    assert all(is_right(task, protocols(task)[over], drawn) for drawn in every_input(task))


@pytest.mark.parametrize("task", TINY, ids=name)
@pytest.mark.parametrize("over", ["edges", "vertices"])
def test_a_round_less_is_found_wrong(task, over):
    protocol = protocols(task)[over]
    cut = replace(protocol, rounds=protocol.rounds - 1)
    assert not all(is_right(task, cut, drawn) for drawn in every_input(task))


@pytest.mark.parametrize("task", TINY, ids=name)
@pytest.mark.parametrize("over", ["edges", "vertices"])
def test_a_bit_less_does_not_fit(task, over):
    protocol = protocols(task)[over]
    narrow = replace(protocol, bits=protocol.bits - 1)
    with pytest.raises(ProtocolError, match="bits"):
        [is_right(task, narrow, drawn) for drawn in every_input(task)]


def test_a_bit_that_was_not_wiped_is_found_wrong():
    """Were edges to keep what they carry, any edge of the first graph would pass for common."""
    task = TINY[2]
    protocol = task.edge_protocol

    def keeps(t, edge, own, states, given):
        return own | protocol.step(t, edge, own, states, given)

    broken = replace(protocol, step=keeps)
    assert not all(is_right(task, broken, drawn) for drawn in every_input(task))


def test_a_protocol_that_meets_itself_is_found_wrong():
    """A root edge is among those that it sees, and must not take itself for another."""
    task = TINY[1]
    protocol = task.edge_protocol

    def careless(t, place, own, states, given):
        last = t == 3 and given is None
        return int(states[own] > 0) if last else protocol.step(t, place, own, states, given)

    broken = replace(protocol, step=careless)
    assert not all(is_right(task, broken, drawn) for drawn in every_input(task))


@pytest.mark.parametrize("task", SMALL, ids=name)
def test_arrays_do_what_the_simulator_does(task):
    answers = []
    for seed in range(6):
        drawn = task.draw(np.random.default_rng(seed))
        inputs, answer = task.inputs(drawn), task.answer(drawn)
        answers.append(answer)
        for protocol, trace, read in (
            (task.edge_protocol, task.edge_trace, task.edge_outputs),
            (task.node_protocol, task.node_trace, task.node_outputs),
        ):
            reference = simulate(protocol, task.graph, inputs)
            states = [np.array(state) for state in trace(drawn)]
            for ours, theirs in zip(states, reference.states, strict=True):
                if ours.ndim == 2:  # by endpoints
                    assert np.array_equal(ours, ours.T)
                    ours = ours[tuple(np.array(task.graph.edges).T)]
                assert ours.astype(int).tolist() == list(theirs.values())
            last, rounds, bits = count(trace(drawn))
            assert (rounds, bits) == (reference.rounds, reference.bits)
            assert rounds == protocol.rounds
            assert bits <= protocol.bits
            assert read(last).tolist() == reference.outputs[task.asked] == answer.tolist()
    assert len(np.unique(answers)) == 2, "a constant answer would pass"


@pytest.mark.parametrize(
    ("task", "edge", "node"),
    [
        (Paths(100), (3, 1), (9, 1)),
        (Tree(100), (3, 4), (6, 3)),
        (Complete(100), (4, 1), (27, 1)),
    ],
    ids=["paths", "tree", "complete"],
)
def test_rounds_and_bits(task, edge, node):
    drawn = task.draw(np.random.default_rng(0))
    assert tuple(count(task.edge_trace(drawn))[1:]) == edge
    assert tuple(count(task.node_trace(drawn))[1:]) == node


@pytest.mark.parametrize("kind", TASKS)
def test_no_node_protocol_beats_the_bound(kind):
    for n in range(4, 200):
        task = TASKS[kind](n)
        drawn = task.draw(np.random.default_rng(n))
        last, rounds, bits = count(task.node_trace(drawn))
        assert np.array_equal(task.node_outputs(last), task.answer(drawn))
        assert 1 <= task.node_bound <= rounds * bits


def test_the_tree_is_symmetric():
    """Children and leaves in another order give the same answers in that order."""
    task, rng = Tree(36), np.random.default_rng(0)
    drawn = task.draw(rng)
    order = rng.permutation(task.arity)
    moved = rng.permuted(drawn[order], axis=1)
    for protocol in protocols(task).values():
        outputs = np.array(simulate(protocol, task.graph, task.inputs(drawn)).outputs[task.asked])
        shuffled = simulate(protocol, task.graph, task.inputs(moved)).outputs[task.asked]
        assert outputs[order].tolist() == shuffled


def test_the_sets_that_the_bound_of_the_tree_counts():
    for arity in range(2, 60):
        fixed = 2 * arity // 3
        sets = sum(comb(fixed, size) for size in range(1, arity - fixed + 1))
        assert sets >= 2 ** (fixed - 1)
        assert Tree(arity**2).node_bound == fixed + 1
    arity, fixed, spelt = 6, 4, set()
    for others in product(range(1, fixed + 1), repeat=arity - fixed):
        values = np.array([*range(1, fixed + 1), *others])
        answer = Tree(arity**2).answer(np.arange(arity) < values[:, None])[:fixed]
        assert set(np.flatnonzero(answer) + 1) == set(others)
        spelt.add(tuple(answer))
    assert len(spelt) == comb(4, 1) + comb(4, 2)


def test_the_matrix_that_the_bound_of_the_complete_graph_ranks():
    task = TINY[2]  # N = 3 possible edges in a half
    disjoint = [not task.answer(drawn).any() for drawn in every_input(task)]
    assert np.linalg.matrix_rank(np.reshape(disjoint, (8, 8)).astype(float)) == 8
    assert task.node_bound == (3 + 1) / 6 + 1 == pytest.approx((6 - 2) / 8 + 1 / 6 + 1)


@pytest.mark.parametrize("kind", TASKS)
def test_measure(kind):
    sizes = [16, 64, 144]
    measured = measure(kind, sizes, seed=3)
    assert measured == measure(kind, sizes, seed=3) == json.loads(json.dumps(measured))
    test, curves = measured["test"], measured["curves"]
    assert set(test) == {
        *("solved", "node_solved", "constant_solved", "edge_rounds", "edge_bits", "edge_growth"),
        *("bound_growth", "bound_over_edge", "node_protocol_over_bound"),
    }
    assert all(type(value) is float for value in test.values())
    assert list(curves) == [
        "n",
        "edge rounds × bits",
        "node lower bound",
        "node protocol rounds × bits",
        "edge rounds",
        "edge bits",
    ]
    assert curves["n"] == sizes
    assert all(len(curve) == 3 for curve in curves.values())
    assert test["solved"] == test["node_solved"] == 1 > test["constant_solved"]
    assert test["node_protocol_over_bound"] >= 1
    assert test["edge_growth"] < test["bound_growth"]
    cost = np.multiply(curves["edge rounds"], curves["edge bits"]).tolist()
    assert curves["edge rounds × bits"] == cost
    assert test["bound_over_edge"] == curves["node lower bound"][-1] / cost[-1]
    reverse = measure(kind, sizes[::-1], seed=3)["test"]
    assert reverse == pytest.approx(test), "the largest size need not be the last"


def test_measure_finds_a_broken_protocol(monkeypatch):
    trace = Paths.edge_trace
    monkeypatch.setattr(Paths, "edge_trace", lambda self, drawn: list(trace(self, drawn))[:-1])
    test = measure("paths", [16, 64], seed=0)["test"]
    assert test["solved"] < 1
    assert test["edge_rounds"] == 2


@pytest.mark.parametrize(
    ("task", "sizes", "message"),
    [
        ("cycle", [16, 64], "complete"),
        ("paths", [16, 16], "two different sizes"),
        ("tree", [3, 16], "at least 4"),
        ("tree", [], "at least 4"),
    ],
)
def test_measure_explains_what_it_expects(task, sizes, message):
    with pytest.raises(ValueError, match=message):
        measure(task, sizes, seed=0)
