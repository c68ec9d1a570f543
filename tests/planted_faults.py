"""Plants faults in the kernels, one at a time in a copy, and demands that their tests go red.

python -m tests.planted_faults [part of a fault's name]      (or: make test-faults)
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Fault(NamedTuple):
    """One change of one file that some test must notice."""

    name: str
    file: str
    right: str
    wrong: str


def in_resolvent(name: str, file: str, right: str, wrong: str) -> Fault:
    """A fault in the resolvent's folder."""
    return Fault(name, f"kernels/resolvent/{file}", right, wrong)


def in_kernel(name: str, file: str, right: str, wrong: str) -> Fault:
    """A fault in what runs on a GPU."""
    return in_resolvent(name, f"triton_backend/{file}", right, wrong)


def in_spectral_conv(name: str, file: str, right: str, wrong: str) -> Fault:
    """A fault in the spectral convolution's folder."""
    return Fault(name, f"kernels/spectral_conv/{file}", right, wrong)


def in_spectral_kernel(name: str, file: str, right: str, wrong: str) -> Fault:
    """A fault in what of it runs on a GPU."""
    return in_spectral_conv(name, f"triton_backend/{file}", right, wrong)


FAULTS = [
    in_resolvent("sign of A", "lu.py", "edge_value, -weight_EH)", "edge_value, weight_EH)"),
    in_resolvent("sign of an update", "lu.py", "target, -product", "target, product"),
    in_resolvent(
        "repeated edges overwrite", "lu.py",
        "_add_rows_(values, plan.edge_value, -weight_EH)",
        "values.index_copy_(0, plan.edge_value, -weight_EH)",
    ),
    in_resolvent(
        "diagonal dropped", "plan.py",
        "own = self.num_entries + nodes", "own = 0 * nodes + self.num_entries + self.num_nodes",
    ),
    in_resolvent(
        "unit triangle not unit", "lu.py",
        "    values[plan.lowers : plan.num_entries] *= "
        "diagonal.index_select(0, plan.row[plan.lowers :])\n", "",
    ),
    in_resolvent(
        "triangles in the wrong order", "lu.py",
        '("upper", "lower") if transposed', '("lower", "upper") if transposed',
    ),
    in_resolvent(
        "dominance is not asked for", "lu.py", "stable |= failing == 0", "stable |= failing >= 0"
    ),
    in_resolvent(
        "residual of the wrong sign", "lu.py", "values[: plan.num_entries].neg_()", "pass"
    ),
    in_resolvent(
        "transposed solve not transposed", "plan.py",
        "            ends = (self.col, self.row) if transposed else (self.row, self.col)",
        "            ends = (self.row, self.col)",
    ),
    in_resolvent(
        "a level is missing", "plan.py",
        "enumerate((level[starts] // deep).tolist())",
        "enumerate((level[starts] // deep).tolist()[:-1])",
    ),
    in_resolvent(
        "levels in the wrong order", "plan.py", "self.round.amax() - self.round if", "self.round if"
    ),
    in_resolvent(
        "off by one in a block of products", "plan.py",
        "torch.searchsorted(lower_round[left], cuts)",
        "torch.searchsorted(lower_round[left], cuts + 1)",
    ),
    in_resolvent(
        "rows shared", "ragged.py", "nth * stack.nodes) + self.place", "nth * stack.nodes)"
    ),
    in_resolvent(
        "slots of another stack", "ragged.py", "_: stack.slots.start", "nth: nth"
    ),
    in_resolvent("fill-in forgotten", "elimination.py", "fill.append(new)", "fill.append(new[:0])"),
    in_resolvent(
        "neighbours in one round", "elimination.py", "winner = candidate & ~beaten",
        "winner = candidate",
    ),
    in_resolvent(
        "a cycle passes for a DAG", "elimination.py", "if not ready.any():",
        "ready = ready | ~done.logical_or(ready).cummax(0).values\n        if False:",
    ),
    in_resolvent(
        "heads mixed up, row form", "torch_backend.py",
        "_heads(stack, V_RHP, Y_RHP)", "_heads(stack, V_RHP.flip(1), Y_RHP)",
    ),
    in_resolvent(
        "heads mixed up, state form", "torch_backend.py",
        "Y_NHP[:, head] += _read", "Y_NHP[:, 0] += _read",
    ),
    in_resolvent(
        "gradient of one head only", "torch_backend.py",
        "d_kernel_Gnn.addcmul_(T_Gnn, L_Gnn)", "d_kernel_Gnn.copy_(T_Gnn * L_Gnn)",
    ),
    in_resolvent(
        "adjoint not transposed, row form", "torch_backend.py",
        "T_Rn, transposed=True", "T_Rn, transposed=False",
    ),
    in_resolvent(
        "adjoint not transposed, state form", "torch_backend.py",
        "dY_NP, transposed=True", "dY_NP, transposed=False",
    ),
    in_resolvent(
        "ends of an edge swapped", "plan.py",
        "source, target = edge_index\n            target, edge",
        "target, source = edge_index\n            target, edge",
    ),
    in_resolvent(
        "part of the states left out", "torch_backend.py",
        "for first in range(0, states, step):", "for first in range(0, states - step + 1, step):",
    ),
    in_resolvent(
        "one doubling too few", "neumann.py", "terms.bit_length() - 1", "terms.bit_length() - 2"
    ),
    in_resolvent("error bound too small", "neumann.py", "range(terms)", "range(2 * terms)"),
    in_resolvent(
        "reversed chain not reversed", "chain.py",
        "place = size.repeat_interleave(size) - 1 - place", "place = 1 * place",
    ),
    in_resolvent(
        "a state enters the next chain", "chain.py",
        "x[begin : begin + chains * n : n] = 0", "pass",
    ),
    in_resolvent(
        "off by one block of chunks", "chain.py",
        "range(block, n, block)", "range(2 * block, n, block)",
    ),
    in_resolvent(
        "entering state not decayed", "chain.py",
        "torch.addcmul(own, entering, prefix[t].unsqueeze(-1), out=Y[t])",
        "torch.add(own, entering, out=Y[t])",
    ),
    in_resolvent(
        "gradient of a chunk's decay dropped", "chain.py",
        "d_prefix[:, -1] += (E * F)", "d_prefix[:, -1] += 0 * (E * F)",
    ),
    in_resolvent(
        "chain's adjoint not transposed", "chain.py",
        "T = torch.bmm(L.mT, dL)", "T = torch.bmm(L, dL)",
    ),
    in_resolvent(
        "states passed on the wrong way", "decaying_chains.py",
        "return steps[::-1] if reverse else steps", "return steps",
    ),
    in_resolvent(
        "a state enters undecayed", "decaying_chains.py",
        "out=E_nkSHP[i - 1]).mul_(at.entry)", "out=E_nkSHP[i - 1])",
    ),
    in_resolvent(
        "what crosses an edge counts its node", "decaying_chains.py",
        "(so_far - taken_cQH)", "so_far",
    ),
    in_resolvent(
        "a scale's own share forgotten", "decaying_chains.py",
        "given / way.r.squeeze(-1) + way.own * d_own", "given / way.r.squeeze(-1)",
    ),
    in_resolvent(
        "strong decays taken for mild ones", "decaying_chains.py",
        "least >= math.log(SMALLEST_DECAY)", "least >= -1e9",
    ),
    in_resolvent(
        "a band hands nothing on", "grid.py", "dL[:, -K:] += d_last[..., seen]", "pass"
    ),
    in_resolvent(
        "gradient of one head only, grid", "grid.py",
        "for h in range(1, x_tH.shape[1]):", "for h in range(2, x_tH.shape[1]):",
    ),
    in_resolvent(
        "sign of a gradient, grid", "grid.py",
        "d_top[:, 0] = (d_entering", "d_top[:, 0] = -(d_entering",
    ),
    in_resolvent(
        "weights of another row", "grid.py", "dh.addcmul_(top[t, r + 1,", "dh.addcmul_(top[t, r,"
    ),
    in_resolvent(
        "a DAG not turned back", "grid_dags.py", "return y.flip(dims) if dims else y", "return y"
    ),
    in_resolvent(
        "a band's first row from nowhere", "grid_numba.py",
        "kept[i - 1, s], kept[i, s],", "kept[0, s], kept[i, s],",
    ),
    in_resolvent(
        "weights of another node, states", "grid_numba.py",
        "under = top[v + down] if", "under = top[v] if",
    ),
    in_resolvent(
        "a factor that never begins anew", "grid_numba.py",
        "LEAST < abs(product) < 1 / LEAST", "True",
    ),
    in_resolvent(
        "a weight's gradient not brought back", "grid_numba.py",
        "of_top[v] = factor[u] / factor[v] * ", "of_top[v] = ",
    ),
    in_resolvent(
        "gradient of one part of the heads only", "grid_compiled.py",
        "d_kernel = d_kernel.sum(0)[..., :n]", "d_kernel = d_kernel[0][..., :n]",
    ),
    in_resolvent(
        "pairs of another DAG", "grid_numba.py",
        "of_pairs = (group[d] * kernel.shape[1] + image) * size", "of_pairs = image * size",
    ),
    in_resolvent(
        "something enters a grid", "grid_compiled.py",
        "into_columns[:, -1 if below else 0] = 0", "into_columns[:, 0] = 0",
    ),
    in_kernel(
        "sign of A, kernel", "factors.py", "value -= a.to(tl.float32)", "value += a.to(tl.float32)"
    ),
    in_kernel(
        "sign of an update, kernel", "factors.py",
        "value -= product * tl.load(values + right", "value += product * tl.load(values + right",
    ),
    in_kernel(
        "repeated edges, kernel", "factors.py",
        "range(0, tl.max(count)):\n                here = n < count\n                edge",
        "range(0, 1):\n                here = n < count\n                edge",
    ),
    in_kernel(
        "pivot not inverted, kernel", "factors.py",
        "1.0 / tl.where(is_pivot, value, 1.0)", "tl.where(is_pivot, value, 1.0)",
    ),
    in_kernel(
        "sign of a sweep, kernel", "factors.py",
        "tl.store(values + target, -value, mask=off)", "tl.store(values + target, value, mask=off)",
    ),
    in_kernel(
        "sign in a front", "factors.py",
        "tl.store(here, tl.load(here) - tl.dot(", "tl.store(here, tl.load(here) + tl.dot(",
    ),
    in_kernel(
        "front not transposed", "factors.py",
        "at = (r[None, :] * m + r[:, None]) if TRANSPOSED else (r[:, None] * m + r[None, :])",
        "at = r[:, None] * m + r[None, :]",
    ),
    in_kernel(
        "triangles of a front mixed up", "factors.py",
        "if down == TRANSPOSED:", "if down != TRANSPOSED:",
    ),
    in_kernel(
        "solve not transposed, kernel", "factors.py",
        "half: tl.constexpr = HALVES + (2 * PARTS_OF_A_HALF if TRANSPOSED else 0)",
        "half: tl.constexpr = HALVES",
    ),
    in_kernel(
        "mask not transposed", "row.py",
        "masked *= _resolvent_tile(L, T, first, i, in_i, j, in_j, TRANSPOSED)",
        "masked *= _resolvent_tile(L, T, first, i, in_i, j, in_j, False)",
    ),
    in_kernel(
        "heads mixed up, kernel", "row.py",
        "v = _tile(V + head * P, j", "v = _tile(V, j",
    ),
    in_kernel(
        "gradient of one head only, kernel", "row.py",
        "return of_heads.sum(0)", "return of_heads[0]",
    ),
    in_kernel(
        "ends of an edge swapped, kernel", "row.py",
        "x = X + tl.load(starts + target, mask", "x = X + tl.load(starts + source, mask",
    ),
    in_kernel(
        "adjoint not transposed, kernel", "state.py",
        "C[:, states], dY, transposed=True", "C[:, states], dY, transposed=False",
    ),
    in_kernel(
        "states read by another node's", "state.py",
        "by = tl.load(by_states + at_state", "by = tl.load(by_states + at_state * 0 + s[None, :]",
    ),
    in_resolvent(
        "products with pivots of a front", "schedule.py",
        "kept = ~self.in_front[self.col[self.left]]", "kept = self.left >= 0",
    ),
    in_resolvent(
        "levels of the second half upside down", "schedule.py",
        "self.last - self.round[rows]", "self.round[rows]",
    ),
    in_kernel(
        "entering state not decayed, kernel", "chain.py",
        "tl.dot(M, V_Qp, prefix[:, None] * Y_Qp,", "tl.dot(M, V_Qp, Y_Qp,",
    ),
    in_kernel(
        "decay's gradient dropped, kernel", "chain.py",
        "d_prefix = tl.where(i == Q - 1, d_prefix + d_through, d_prefix)", "d_through = 0.0",
    ),
    in_kernel(
        "a weight enters a chain, kernel", "chain.py",
        "read = (k < end) & ((k > 0) | (begins == 0))", "read = k < end",
    ),
    in_kernel(
        "row's adjoint not transposed, kernel", "grid.py",
        "_advance(tl.trans(chain), c_ks", "_advance(chain, c_ks",
    ),
    in_kernel(
        "weights of another row, kernel", "grid.py",
        "weight = _weights(top, row + 1, k, K", "weight = _weights(top, row, k, K",
    ),
    in_kernel(
        "gradient of one block only, kernel", "grid.py",
        "dC[t] += of_C.sum(0)", "dC[t] += of_C[0]",
    ),
    in_kernel(
        "rows counted from the wrong end, kernel", "grid_rows.py",
        "if CORNER >= 2:", "if CORNER > 2:",
    ),
    in_kernel(
        "gradient of one row of sources only, kernel", "grid_rows.py",
        "for q in range(r + 1):", "for q in range(r, r + 1):",
    ),
    in_spectral_conv(
        "conjugates not counted", "basis.py", "    twice[0] = 1\n", "    twice[:] = 1\n",
    ),
    in_spectral_conv(
        "sign of the imaginary part", "basis.py",
        "torch.cat([cos, -sin]).T", "torch.cat([cos, sin]).T",
    ),
    in_spectral_conv(
        "modes of a leading axis one too high", "basis.py",
        "range(-(count // 2), count // 2)", "range(1 - count // 2, 1 + count // 2)",
    ),
    in_spectral_conv(
        "angles rounded before turns are taken away", "basis.py",
        "2 * math.pi / points * turns.double()", "(2 * math.pi / points * turns.half()).double()",
    ),
    in_spectral_conv(
        "a leading axis turned the wrong way", "torch_backend.py",
        "[cos_re + sin_im, cos_im - sin_re]", "[cos_re - sin_im, cos_im + sin_re]",
    ),
    in_spectral_conv(
        "a leading axis turned back the wrong way", "torch_backend.py",
        "[cos_re - sin_im, cos_im + sin_re]", "[cos_re + sin_im, cos_im - sin_re]",
    ),
    in_spectral_conv(
        "not normed by points", "torch_backend.py", "waves(N, K, False, *like) / N",
        "waves(N, K, False, *like) / K",
    ),
    in_spectral_conv(
        "halves of a fast spectrum swapped", "torch_backend.py",
        "torch.cat([above, spectrum.new_zeros(gap), below]",
        "torch.cat([below, spectrum.new_zeros(gap), above]",
    ),
    in_spectral_conv(
        "fast inverse forgets odd sizes", "torch_backend.py", "n=points[-1], norm",
        "n=points[-1] // 2 * 2, norm",
    ),
    in_spectral_conv(
        "sign of a complex product", "torch_backend.py",
        "products[:, 0, :, 0] - products[:, 1, :, 1]",
        "products[:, 0, :, 0] + products[:, 1, :, 1]",
    ),
    in_spectral_conv(
        "sign of a complex product, depthwise", "torch_backend.py",
        "re * w_re - im * w_im", "re * w_re + im * w_im",
    ),
    in_spectral_conv(
        "bias at another mode", "torch_backend.py", "at = at * K + K // 2", "at = at * K"
    ),
    in_spectral_conv(
        "bias of every factor", "torch_backend.py",
        "weight, None, axis, form", "weight, bias_D, axis, form",
    ),
    in_spectral_conv(
        "a factor sees another axis", "torch_backend.py",
        "enumerate(weights[1:], start=1)", "enumerate(weights[:0:-1], start=1)",
    ),
    in_spectral_conv(
        "skip transposed", "__init__.py", "skip.to(dtype).expand", "skip.mT.to(dtype).expand"
    ),
    in_spectral_conv(
        "low precision inside", "__init__.py",
        "dtype = torch.promote_types(x.dtype, torch.float32)",
        "dtype = torch.float32 if x.dtype == torch.float64 else x.dtype",
    ),
    in_spectral_kernel(
        "sign of a complex product, kernel", "products.py",
        "re = tl.dot(-A_im, B_im", "re = tl.dot(A_im, B_im",
    ),
    in_spectral_kernel(
        "a conjugate forgotten, kernel", "products.py",
        "A_im = -A_im if CONJ_A else A_im", "A_im = A_im",
    ),
    in_spectral_kernel(
        "adjoint of the weights not conjugate", "convolution.py",
        "conj_B=adjoint", "conj_B=False",
    ),
    in_spectral_kernel(
        "a plane turned the wrong way, kernel", "transforms.py",
        "X_im = tl.dot(-sin, re", "X_im = tl.dot(sin, re",
    ),
    in_spectral_kernel(
        "rows of a plane taken twice, kernel", "transforms.py",
        "range(part * length, last, R_TILE)", "range(0, last, R_TILE)",
    ),
    in_spectral_kernel(
        "one part of a plane alone", "transforms.py",
        "    X = X[0] if parts == 1 else X.sum(0)", "    X = X[0]",
    ),
    in_spectral_kernel(
        "not normed by the points of a leading axis", "transforms.py",
        "tl.store(at, X_re * scale", "tl.store(at, X_re",
    ),
    in_spectral_kernel(
        "channels of a skip left out, kernel", "transforms.py",
        "for start in range(0, C, C_TILE):", "for start in range(0, C_TILE, C_TILE):",
    ),
    in_spectral_kernel(
        "GELU by its approximation", "transforms.py",
        "return 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)", "return tl.sigmoid(1.702 * z)",
    ),
    in_spectral_kernel(
        "a term of GELU's slope dropped", "transforms.py",
        "return _below(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)", "return _below(z)",
    ),
    in_spectral_kernel(
        "a skip's adjoint of what leaves the GELU", "convolution.py",
        "x=None if skip is None else dZ", "x=None if skip is None else dY",
    ),
    in_spectral_kernel(
        "gradient of a bias at another mode", "convolution.py",
        "tuple(K // 2 for K in modes[:-1])", "tuple(0 for K in modes[:-1])",
    ),
    in_spectral_kernel(
        "adjoint of the way back not twice a mode", "convolution.py",
        "    table = from_half(points[-1], modes[-1], *like)",
        "    table = to_half(points[-1], modes[-1], *like).T * points[-1]",
    ),
]  # fmt: skip


def are_green(tests: str, fault: Fault | None = None) -> bool:
    """Whether these tests pass in a copy of the code, with a fault or without."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("kernels", "tests", "lit_models", "datamodules"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if fault is not None:
            path = copy / fault.file
            path.write_text(path.read_text().replace(fault.right, fault.wrong))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests]
        command += ["-k", "not compile"]  # takes minutes, and no fault of ours stops a compiler
        return subprocess.run(command, cwd=copy, capture_output=True, check=False).returncode == 0


def tests_of(fault: Fault) -> str:
    """The tests of the file a fault is in, or of its op."""
    path = Path(fault.file)
    if path.is_relative_to("kernels/spectral_conv/triton_backend"):
        return "tests/kernels/test_spectral_conv_triton.py"
    if path.parent.name == "triton_backend" or path.stem == "schedule":
        own = f"tests/kernels/test_{path.stem}_triton.py"
        return own if (ROOT / own).exists() else "tests/kernels/test_triton.py"
    stem = "grid_dags" if path.stem in ("grid_compiled", "grid_numba") else path.stem
    own, op = (f"tests/kernels/test_{name}.py" for name in (stem, path.parent.name))
    return own if (ROOT / own).exists() else op


def main() -> None:
    """Plant every fault whose name holds the argument; fail if the tests miss one."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    faults = [fault for fault in FAULTS if wanted in fault.name]
    for tests in {tests_of(fault) for fault in faults}:
        if not are_green(tests):
            raise SystemExit(f"{tests} is red without any fault.")
    missed = []
    for fault in faults:
        missed += [fault.name] if are_green(tests_of(fault), fault) else []
        print(f"{'MISSED ' if fault.name in missed else 'noticed'}  {fault.name}", flush=True)
    if missed:
        raise SystemExit(f"The tests missed: {', '.join(missed)}.")


if __name__ == "__main__":
    main()
