"""Plants faults in the kernels, one at a time in a copy, and demands that their tests go red.

python -m tests.planted_faults [part of a fault's name]      (or: make test-faults)
"""

import ast
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Fault(NamedTuple):
    """One change of one function that some test must notice.

    Attributes:
        name: what goes wrong, for people.
        file: of the function, from the root on.
        function: its qualified name there.
        right: a piece of it, once in it as `ast.unparse` writes it without its docstring.
        wrong: what stands there instead.
    """

    name: str
    file: str
    function: str
    right: str
    wrong: str


class MisfitError(ValueError):
    """A fault that fits its file no more."""


def faults_of(file: str, *faults: tuple[str, str, str, str]) -> list[Fault]:
    """Faults of one file; a name, function, right and wrong each."""
    return [Fault(name, file, *change) for name, *change in faults]


FAULTS = [
    *faults_of(
        "kernels/resolvent/lu.py",
        ("sign of A", "_assemble", "-weight_EH", "weight_EH"),
        ("sign of an update", "_factorise", "-product", "product"),
        (
            "repeated edges overwrite",
            "_assemble",
            "_add_rows_(values, plan.edge_value, -weight_EH)",
            "values.index_copy_(0, plan.edge_value, -weight_EH)",
        ),
        (
            "unit triangle not unit",
            "_factorise",
            "*= diagonal.index_select(0, plan.row[plan.lowers:])",
            "*= 1",
        ),
        ("triangles in the wrong order", "LU._solve_", "('upper', 'lower')", "('lower', 'upper')"),
        ("dominance is not asked for", "_require_stability", "failing == 0", "failing >= 0"),
        (
            "a scaling of equations",
            "_require_stability",
            "plan.col))",
            "plan.row))",
        ),
        ("residual of the wrong sign", "LU.__init__", "values[:plan.num_entries].neg_()", "pass"),
    ),
    *faults_of(
        "kernels/resolvent/plan.py",
        (
            "diagonal dropped",
            "Plan.sweep",
            "self.num_entries + nodes",
            "0 * nodes + self.num_entries + self.num_nodes",
        ),
        (
            "transposed solve not transposed",
            "Plan.sweep",
            "(self.col, self.row) if transposed else (self.row, self.col)",
            "(self.row, self.col)",
        ),
        (
            "a level is missing",
            "Plan._make_sweep",
            "(level[starts] // deep).tolist()",
            "(level[starts] // deep).tolist()[:-1]",
        ),
        ("levels in the wrong order", "Plan.sweep", "self.round.amax() - self.round", "self.round"),
        (
            "off by one in a block of products",
            "make_plan",
            "torch.searchsorted(lower_round[left], cuts)",
            "torch.searchsorted(lower_round[left], cuts + 1)",
        ),
        (
            "ends of an edge swapped",
            "Plan.pairs",
            "source, target = edge_index",
            "target, source = edge_index",
        ),
    ),
    *faults_of(
        "kernels/resolvent/ragged.py",
        (
            "rows shared",
            "Ragged.row_in_stack",
            "self._of_nodes(lambda stack, nth: nth * stack.nodes) + self.place",
            "self._of_nodes(lambda stack, nth: nth * stack.nodes)",
        ),
        (
            "slots of another stack",
            "Ragged.slot",
            "lambda stack, _: stack.slots.start",
            "lambda stack, nth: nth",
        ),
    ),
    *faults_of(
        "kernels/resolvent/elimination.py",
        ("fill-in forgotten", "eliminate", "fill.append(new)", "fill.append(new[:0])"),
        ("neighbours in one round", "_independent_cheap_nodes", "candidate & ~beaten", "candidate"),
        (
            "a cycle passes for a DAG",
            "_longest_paths",
            "if not ready.any():",
            "ready = ready | ~done.logical_or(ready).cummax(0).values\n        if False:",
        ),
    ),
    *faults_of(
        "kernels/resolvent/torch_backend.py",
        (
            "heads mixed up, row form",
            "_RowForm.forward",
            "_heads(stack, V_RHP, Y_RHP)",
            "_heads(stack, V_RHP.flip(1), Y_RHP)",
        ),
        ("heads mixed up, state form", "_StateForm.forward", "Y_NHP[:, head]", "Y_NHP[:, 0]"),
        (
            "gradient of one head only",
            "_RowForm.backward",
            "d_kernel_Gnn.addcmul_(T_Gnn, L_Gnn)",
            "d_kernel_Gnn.copy_(T_Gnn * L_Gnn)",
        ),
        (
            "adjoint not transposed, row form",
            "_RowForm.backward",
            "transposed=True",
            "transposed=False",
        ),
        (
            "adjoint not transposed, state form",
            "_StateForm.backward",
            "transposed=True",
            "transposed=False",
        ),
        (
            "part of the states left out",
            "_parts",
            "range(0, states, step)",
            "range(0, states - step + 1, step)",
        ),
    ),
    *faults_of(
        "kernels/resolvent/neumann.py",
        (
            "one doubling too few",
            "_sum_of_powers",
            "terms.bit_length() - 1",
            "terms.bit_length() - 2",
        ),
    ),
    *faults_of(
        "kernels/resolvent/triton_backend/factors.py",
        (
            "sign of A, kernel",
            "factorise_kernel",
            "value -= a.to(tl.float32)",
            "value += a.to(tl.float32)",
        ),
        ("sign of an update, kernel", "factorise_kernel", "value -= product", "value += product"),
        (
            "repeated edges, kernel",
            "factorise_kernel",
            "tl.load(weight + edge * heads + head, mask=here",
            "tl.load(weight + edge * heads + head, mask=here & (n == 0)",
        ),
        (
            "pivot not inverted, kernel",
            "factorise_kernel",
            "1.0 / tl.where(is_pivot, value, 1.0)",
            "tl.where(is_pivot, value, 1.0)",
        ),
        ("sign of a sweep, kernel", "factorise_kernel", "-value", "value"),
        ("sign in a front", "_factorise_front", "tl.load(here) - tl.dot", "tl.load(here) + tl.dot"),
        (
            "front not transposed",
            "_solve_front",
            "r[None, :] * m + r[:, None] if TRANSPOSED else r[:, None] * m + r[None, :]",
            "r[:, None] * m + r[None, :]",
        ),
        (
            "triangles of a front mixed up",
            "_solve_front",
            "down == TRANSPOSED",
            "down != TRANSPOSED",
        ),
        (
            "solve not transposed, kernel",
            "solve_kernel",
            "HALVES + (2 * PARTS_OF_A_HALF if TRANSPOSED else 0)",
            "HALVES",
        ),
    ),
    *faults_of(
        "kernels/resolvent/triton_backend/row.py",
        (
            "mask not transposed",
            "mix_kernel",
            "_resolvent_tile(L, T, first, i, in_i, j, in_j, TRANSPOSED)",
            "_resolvent_tile(L, T, first, i, in_i, j, in_j, False)",
        ),
        ("heads mixed up, kernel", "mix_kernel", "V + head * P", "V"),
        ("gradient of one head only, kernel", "_project", "of_heads.sum(0)", "of_heads[0]"),
        ("ends of an edge swapped, kernel", "edge_kernel", "starts + target", "starts + source"),
    ),
    *faults_of(
        "kernels/resolvent/triton_backend/state.py",
        (
            "adjoint not transposed, kernel",
            "_state_backward",
            "transposed=True",
            "transposed=False",
        ),
        (
            "states read by another node's",
            "contract_kernel",
            "by_states + at_state",
            "by_states + at_state * 0 + s[None, :]",
        ),
    ),
    *faults_of(
        "kernels/resolvent/scheduling.py",
        (
            "products with pivots of a front",
            "_Builder._values",
            "~self.in_front[self.col[self.left]]",
            "self.left >= 0",
        ),
        (
            "levels of the second half upside down",
            "_Builder._half",
            "self.last - self.round[rows]",
            "self.round[rows]",
        ),
    ),
    *faults_of(
        "kernels/chain/torch_backend/layout.py",
        (
            "reversed chain not reversed",
            "lay_out",
            "size.repeat_interleave(size) - 1 - place",
            "1 * place",
        ),
    ),
    *faults_of(
        "kernels/chain/torch_backend/any_weights.py",
        ("a state enters the next chain", "_no_entry", "x[begin:begin + chains * n:n] = 0", "pass"),
        (
            "off by one block of chunks",
            "_pass_states",
            "range(block, n, block)",
            "range(2 * block, n, block)",
        ),
        (
            "entering state not decayed",
            "AnyWeights.forward",
            "torch.addcmul(own, entering, prefix[t].unsqueeze(-1), out=Y[t])",
            "torch.add(own, entering, out=Y[t])",
        ),
        (
            "gradient of a chunk's decay dropped",
            "_tile_gradients",
            "(E * F).sum(1)",
            "0 * (E * F).sum(1)",
        ),
    ),
    *faults_of(
        "kernels/chain/matrix.py",
        ("chain's adjoint not transposed", "chain_matrix_adjoint", "L.mT", "L"),
    ),
    *faults_of(
        "kernels/chain/torch_backend/mild_decays.py",
        (
            "states passed on the wrong way",
            "_in_order",
            "steps[::-1] if reverse else steps",
            "steps",
        ),
        (
            "a state enters undecayed",
            "MildDecays.forward",
            "torch.mul(leaving, at.exit_before, out=E_nkSHP[i - 1]).mul_(at.entry)",
            "torch.mul(leaving, at.exit_before, out=E_nkSHP[i - 1])",
        ),
        (
            "what crosses an edge counts its node",
            "_before_each_edge",
            "so_far - taken_cQH",
            "so_far",
        ),
        (
            "a scale's own share forgotten",
            "MildDecays.backward",
            "given / way.r.squeeze(-1) + way.own * d_own",
            "given / way.r.squeeze(-1)",
        ),
        ("strong decays taken for mild ones", "strong_heads", "math.log(SMALLEST_DECAY)", "-1e9"),
    ),
    *faults_of(
        "kernels/chain/triton_backend.py",
        ("entering state not decayed, kernel", "outputs_kernel", "prefix[:, None] * Y_Qp", "Y_Qp"),
        (
            "decay's gradient dropped, kernel",
            "value_gradients_kernel",
            "d_prefix = tl.where(i == Q - 1, d_prefix + d_through, d_prefix)",
            "d_through = 0.0",
        ),
        (
            "a weight enters a chain, kernel",
            "_weights",
            "(k < end) & ((k > 0) | (begins == 0))",
            "k < end",
        ),
    ),
    *faults_of(
        "kernels/grid/torch_backend.py",
        ("a band hands nothing on", "_mix_adjoint", "dL[:, -K:] += d_last[..., seen]", "pass"),
        (
            "gradient of one head only, grid",
            "_over_heads",
            "range(1, x_tH.shape[1])",
            "range(2, x_tH.shape[1])",
        ),
        ("sign of a gradient, grid", "_bands_adjoint", "d_top[:, 0] = ", "d_top[:, 0] = -"),
        ("weights of another row", "_StateForm.backward", "r + 1", "r"),
    ),
    *faults_of(
        "kernels/grid/__init__.py",
        ("a DAG not turned back", "GridDag.mix", "y.flip(dims) if dims else y", "y"),
    ),
    *faults_of(
        "kernels/grid/numba_backend/loops.py",
        ("a band's first row from nowhere", "differentiate_states", "i - 1", "0"),
        ("weights of another node, states", "_adjoint_of_band", "v + down", "v"),
        (
            "a factor that never begins anew",
            "_straighten",
            "LEAST < abs(product) < 1 / LEAST",
            "True",
        ),
        (
            "a weight's gradient not brought back",
            "_totals_of_edges",
            "factor[u] / factor[v] * total_of(load_vector(x, (2 * u + 1) * LANES))",
            "total_of(load_vector(x, (2 * u + 1) * LANES))",
        ),
        ("pairs of another DAG", "mask", "group[d] * kernel.shape[1] + image", "image"),
    ),
    *faults_of(
        "kernels/grid/numba_backend/forms.py",
        (
            "gradient of one part of the heads only",
            "RowForm.backward",
            "d_kernel.sum(0)",
            "d_kernel[0]",
        ),
        ("something enters a grid", "_Operands.of", "-1 if below else 0", "0"),
    ),
    *faults_of(
        "kernels/grid/triton_backend/states.py",
        ("row's adjoint not transposed, kernel", "grid_adjoint_kernel", "tl.trans(chain)", "chain"),
        ("weights of another row, kernel", "grid_adjoint_kernel", "row + 1", "row"),
        ("gradient of one block only, kernel", "_grid_backward", "of_C.sum(0)", "of_C[0]"),
    ),
    *faults_of(
        "kernels/grid/triton_backend/rows.py",
        ("rows counted from the wrong end, kernel", "_of_dag", "CORNER >= 2", "CORNER > 2"),
        (
            "gradient of one row of sources only, kernel",
            "grid_rows_sum_kernel",
            "range(r + 1)",
            "range(r, r + 1)",
        ),
    ),
    *faults_of(
        "kernels/spectral_conv/basis.py",
        ("conjugates not counted", "_from_half", "twice[0]", "twice[:]"),
        ("sign of the imaginary part", "_to_half", "-sin", "sin"),
        (
            "modes of a leading axis one too high",
            "kept",
            "range(-(count // 2), count // 2)",
            "range(1 - count // 2, 1 + count // 2)",
        ),
        (
            "angles rounded before turns are taken away",
            "_waves",
            "2 * math.pi / points * turns.double()",
            "(2 * math.pi / points * turns.half()).double()",
        ),
    ),
    *faults_of(
        "kernels/spectral_conv/torch_backend.py",
        (
            "a leading axis turned the wrong way",
            "forward_transform",
            "[cos_re + sin_im, cos_im - sin_re]",
            "[cos_re - sin_im, cos_im + sin_re]",
        ),
        (
            "a leading axis turned back the wrong way",
            "inverse_transform",
            "[cos_re - sin_im, cos_im + sin_re]",
            "[cos_re + sin_im, cos_im - sin_re]",
        ),
        (
            "not normed by points",
            "forward_transform",
            "waves(N, K, False, *like) / N",
            "waves(N, K, False, *like) / K",
        ),
        (
            "halves of a fast spectrum swapped",
            "inverse_transform",
            "[above, spectrum.new_zeros(gap), below]",
            "[below, spectrum.new_zeros(gap), above]",
        ),
        (
            "fast inverse forgets odd sizes",
            "inverse_transform",
            "n=points[-1]",
            "n=points[-1] // 2 * 2",
        ),
        (
            "sign of a complex product",
            "mix",
            "products[:, 0, :, 0] - products[:, 1, :, 1]",
            "products[:, 0, :, 0] + products[:, 1, :, 1]",
        ),
        (
            "sign of a complex product, depthwise",
            "depthwise",
            "re * w_re - im * w_im",
            "re * w_re + im * w_im",
        ),
        ("bias at another mode", "constant_mode", "at * K + K // 2", "at * K"),
        (
            "bias of every factor",
            "factorised",
            "along(x_BCN, weight, None, axis, form)",
            "along(x_BCN, weight, bias_D, axis, form)",
        ),
        ("a factor sees another axis", "factorised", "weights[1:]", "weights[:0:-1]"),
    ),
    *faults_of(
        "kernels/spectral_conv/__init__.py",
        ("skip transposed", "spectral_conv", "skip.to", "skip.mT.to"),
        (
            "low precision inside",
            "spectral_conv",
            "torch.promote_types(x.dtype, torch.float32)",
            "torch.float32 if x.dtype == torch.float64 else x.dtype",
        ),
    ),
    *faults_of(
        "kernels/spectral_conv/triton_backend/products.py",
        (
            "sign of a complex product, kernel",
            "product_kernel",
            "tl.dot(-A_im, B_im",
            "tl.dot(A_im, B_im",
        ),
        ("a conjugate forgotten, kernel", "product_kernel", "-A_im if CONJ_A else A_im", "A_im"),
    ),
    *faults_of(
        "kernels/spectral_conv/triton_backend/passes.py",
        ("adjoint of the weights not conjugate", "_mix", "conj_B=adjoint", "conj_B=False"),
        (
            "a skip's adjoint of what leaves the GELU",
            "_convolution_backward",
            "None if skip is None else dZ",
            "None if skip is None else dY",
        ),
        ("gradient of a bias at another mode", "_convolution_backward", "K // 2", "0"),
        (
            "adjoint of the way back not twice a mode",
            "_convolution_backward",
            "from_half(points[-1], modes[-1], *like)",
            "to_half(points[-1], modes[-1], *like).T * points[-1]",
        ),
    ),
    *faults_of(
        "kernels/spectral_conv/triton_backend/transforms.py",
        ("a plane turned the wrong way, kernel", "planes_kernel", "-sin", "sin"),
        (
            "rows of a plane taken twice, kernel",
            "planes_kernel",
            "range(part * length, last, R_TILE)",
            "range(0, last, R_TILE)",
        ),
        (
            "one part of a plane alone",
            "to_spectrum",
            "X = X[0] if parts == 1 else X.sum(0)",
            "X = X[0]",
        ),
        ("not normed by the points of a leading axis", "planes_kernel", "X_re * scale", "X_re"),
        (
            "channels of a skip left out, kernel",
            "fields_kernel",
            "range(0, C, C_TILE)",
            "range(0, C_TILE, C_TILE)",
        ),
        (
            "GELU by its approximation",
            "_below",
            "0.5 + 0.5 * tl.erf(z * 0.7071067811865476)",
            "tl.sigmoid(1.702 * z)",
        ),
        (
            "a term of GELU's slope dropped",
            "_slope",
            "_below(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)",
            "_below(z)",
        ),
    ),
]

# The tests that must notice the faults of a file: those of its longest beginning that is here.
TESTS = {
    "kernels/resolvent/": "resolvent/test_resolvent.py",
    "kernels/resolvent/scheduling.py": "resolvent/test_triton.py",
    "kernels/resolvent/triton_backend/": "resolvent/test_triton.py",
    "kernels/chain/": "chain/test_chain.py",
    "kernels/chain/torch_backend/mild_decays.py": "chain/test_decaying_chains.py",
    "kernels/chain/triton_backend.py": "chain/test_triton.py",
    "kernels/grid/": "grid/test_grid_dags.py",
    "kernels/grid/torch_backend.py": "grid/test_grid.py",
    "kernels/grid/triton_backend/rows.py": "grid/test_triton_rows.py",
    "kernels/grid/triton_backend/states.py": "grid/test_triton_states.py",
    "kernels/spectral_conv/": "spectral_conv/test_spectral_conv.py",
    "kernels/spectral_conv/triton_backend/": "spectral_conv/test_triton.py",
}


def file_of_tests(fault: Fault) -> str:
    """The file of tests that must notice a fault."""
    beginning = max(filter(fault.file.startswith, TESTS), key=len)
    return f"tests/kernels/{TESTS[beginning]}"


def planted(source: str, fault: Fault) -> ast.Module:
    """A file's code with a fault in it.

    Raises:
        MisfitError: there is no such function, or what is to be changed is not in it exactly once.
    """
    tree = parent = ast.parse(source)
    *classes, function = fault.function.split(".")
    for name in (*classes, function):
        places = [i for i, node in enumerate(parent.body) if getattr(node, "name", None) == name]
        if len(places) != 1:
            raise MisfitError(f"{fault.name}: {fault.file} has no {fault.function} of its own.")
        above, parent = parent, parent.body[places[0]]
    if ast.get_docstring(parent) is not None:
        parent.body = parent.body[1:]
    code = ast.unparse(parent)
    if code.count(fault.right) != 1:
        raise MisfitError(
            f"{fault.name}: {fault.right!r} is {code.count(fault.right)} times in {fault.function} "
            f"of {fault.file}."
        )
    above.body[places[0]] = ast.parse(code.replace(fault.right, fault.wrong)).body[0]
    return tree


def are_green(tests: str, fault: Fault | None = None) -> bool:
    """Whether these tests pass in a copy of the code, with a fault or without."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("kernels", "tests", "lit_models", "datamodules"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        # Without a fault, too, so that it is not the writing anew which turns tests red.
        for file in {it.file for it in FAULTS}:
            source = (copy / file).read_text()
            mine = fault is not None and fault.file == file
            tree = planted(source, fault) if mine else ast.parse(source)
            (copy / file).write_text(ast.unparse(tree))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-m",
            "",
            "-p",
            "no:cacheprovider",
            tests,
        ]
        command += ["-k", "not compile"]  # takes minutes, and no fault of ours stops a compiler
        return subprocess.run(command, cwd=copy, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Plant every fault whose name holds the argument; fail if the tests miss one."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    faults = [fault for fault in FAULTS if wanted in fault.name]
    for tests in {file_of_tests(fault) for fault in faults}:
        if not are_green(tests):
            raise SystemExit(f"{tests} is red without any fault.")
    missed = []
    for fault in faults:
        missed += [fault.name] if are_green(file_of_tests(fault), fault) else []
        print(f"{'MISSED ' if fault.name in missed else 'noticed'}  {fault.name}", flush=True)
    if missed:
        raise SystemExit(f"The tests missed: {', '.join(missed)}.")


if __name__ == "__main__":
    main()
