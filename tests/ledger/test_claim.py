"""What a claim's file says becomes runs, and what it must not say is told in one sentence."""

import pytest
from hydra.utils import instantiate

from errors import UserError
from ledger.claim import Planner, Pretrained, claim_names, load_claim, targets
from tests.ledger.conftest import SMALL, write_claim


def test_every_arm_runs_in_every_case_with_every_seed_and_value(small):
    runs = Planner(small).test_runs(small.seeds)
    assert len(runs) == 2 * 2 * 2 * 2
    assert len({run.key for run in runs}) == 16
    (run,) = [
        run
        for run in runs
        if run.arm == "narrow" and run.seed == 1 and run.case == {"training": "long"}
        if run.chosen == {"model.optimisation.lr": 1e-2}
    ]
    cfg = run.config
    assert (cfg.model.net.width, cfg.model.net.dropout, cfg.trainer.max_epochs) == (4, 0.1, 2)
    assert (cfg.seed, cfg.data.shuffle_seed, cfg.model.optimisation.lr) == (1, 1, 1e-2)
    assert cfg.compare is None
    assert run.label == "narrow · training long · lr 0.01 · seed 1"


def test_what_is_selected_of_a_study_is_told():
    runs = Planner(load_claim("memno_linear", "demo")).test_runs((1,))
    assert [run.chosen for run in runs] == [{"lr": lr} for lr in (3e-3, 1e-2, 3e-2)] * 2
    assert all(run.config.study.lr == run.chosen["lr"] for run in runs)


def test_tuning_has_seeds_of_its_own_and_leaves_the_test_split_alone(small):
    runs = Planner(small).tuning_runs()
    assert [(run.arm, run.chosen["callbacks.averaging.decay"]) for run in runs] == [
        ("wide", 0.5),
        ("wide", 0.9),
        ("narrow", 0.5),
        ("narrow", 0.9),
    ]
    assert {run.seed for run in runs} == {7}
    assert {run.config.trainer.limit_test_batches for run in runs} == {1}
    assert {run.config.trainer.max_epochs for run in runs} == {1}


def test_an_arm_may_have_more_to_tune(small):
    small.arms["wide"].grid["model.net.dropout"] = [0.0, 0.1]
    runs = Planner(small).tuning_runs()
    assert [run.arm for run in runs] == ["wide"] * 4 + ["narrow"] * 2
    assert [run.chosen["model.net.dropout"] for run in runs[:4]] == [0.0, 0.1] * 2
    assert "model.net.dropout" not in runs[-1].chosen
    small.tune.grid.clear()
    assert {run.arm for run in Planner(small).tuning_runs()} == {"wide"}, "nothing else to tune"


def test_a_key_is_of_the_config_and_not_of_the_machine(small):
    def key(*changes: tuple[str, object]) -> str:
        planner = Planner(small)
        small.overrides.update(changes)
        return planner.test_runs((0,))[0].key

    before = key()
    assert key(("data.num_workers", 2)) == before
    assert key(("data.batch_size", 4)) != before


def test_overrides_may_refer_to_the_run_and_to_the_scale(claims, tmp_path):
    text = SMALL.replace("CACHE", str(tmp_path / "data"))
    text = text.replace("seeds: [0, 1]", "seeds: ${by_scale:{smoke:[3], demo:[0, 1], paper:[0]}}")
    sizes = "'${by_scale:{smoke:6,demo:7,paper:8}}'"
    text = text.replace("model.net.width: 16", f"model.net.width: {sizes}")
    text = text.replace("[1e-3, 1e-2]", "['${data.batch_size}']")
    write_claim(claims, text)
    claim = load_claim("small", "smoke")
    assert claim.seeds == (3,)
    run = Planner(claim).test_runs(claim.seeds)[0]
    assert run.config.model.net.width == 6
    assert run.config.model.optimisation.lr == run.config.data.batch_size
    assert run.chosen == {"model.optimisation.lr": run.config.data.batch_size}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title:", "titel:", "titel"),
        ("ours: wide", "ours: broad", "broad"),
        ("kind: difference", "kind: value", "rivals"),
        ("seeds: [7]", "seeds: [1]", "tuned and tested"),
        ("at_least: -1", "where: {training: endless}", "endless"),
        ("wide: {experiment: baseline_atoms,", "wide: {", "experiment or a study"),
        ("metric: test.ap\n", "", "metric"),
        ("kind: difference", "kind: recovered", "need a reference"),
        ("kind: difference", "kind: ratio, reference: narrow", "and no other"),
        ("minutes: 1", "paper_table: {there: {broad: 0.5}}\nminutes: 1", "table of there"),
    ],
)
def test_a_wrong_claim_is_one_sentence(claims, old, new, said):
    assert old in SMALL
    write_claim(claims, SMALL.replace(old, new))
    with pytest.raises(UserError, match=said):
        load_claim("small", "smoke")


def with_arms(*arms: str) -> str:
    """The small claim with other arms, written one a line."""
    head, rest = SMALL.split("arms:\n")
    return "\n  ".join([f"{head}arms:", *arms]) + "\n" + rest[rest.index("cases:") :]


def test_a_claim_takes_overrides_and_arms_of_another(claims, small):
    head, rest = with_arms("wide: {base: small/wide}", "narrow: {base: small/narrow}").split(
        "overrides:\n", 1
    )
    write_claim(claims, f"{head}overrides: small\n{rest[rest.index('arms:') :]}", "other")
    other = load_claim("other", "smoke")
    assert other.overrides == small.overrides
    assert other.arms == small.arms
    keys = {run.key for run in Planner(small).test_runs((0,))}
    assert keys == {run.key for run in Planner(other).test_runs((0,))}


def test_an_arm_adds_to_its_base_and_replaces_what_both_have(claims, small):
    text = with_arms(
        "wide:",
        "  base: lent",
        "  overrides: {model.net.width: 32, model.net.dropout: 0.2}",
        "  when: {short: {model.net.dropout: 0.3}}",
        "  tuned: {callbacks.averaging.decay: 0.9}",
        "  grid: {}",
        "  pretrained: null",
        "lent:",
        "  base: small/narrow",
        "  pretrained: {claim: small, arm: wide, case: {training: short}}",
        "  tuned: {model.optimisation.lr: 1e-2}",
        "  grid: {model.optimisation.lr: [1e-2, 1e-3]}",
    )
    write_claim(claims, text, "other")
    wide, lent = load_claim("other", "smoke").arms.values()
    assert wide.experiment == lent.experiment == "baseline_atoms"
    assert lent.overrides == small.arms["narrow"].overrides
    assert wide.overrides == {
        "model.net.width": 32,
        "callbacks.averaging.decay": 0.5,
        "model.net.dropout": 0.2,
    }
    assert wide.when == {"short": {"model.net.dropout": 0.3}, "long": {"model.net.dropout": 0.1}}
    assert lent.when == {"long": {"model.net.dropout": 0.1}}
    assert (wide.tuned, wide.grid, wide.pretrained) == (
        {"callbacks.averaging.decay": 0.9},
        {},
        None,
    )
    assert lent.grid == {"model.optimisation.lr": [1e-2, 1e-3]}
    assert lent.pretrained == Pretrained("small", "wide", {"training": "short"})


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("large/wide", "there is no claim 'large': choose one of other, small"),
        ("other/wide", "base of arm wide is 'other/wide', which is no arm: choose one of broad"),
        ("wides", "base of arm wide is 'wides', which is no arm: choose one of wide, narrow"),
        ("wide", "the bases of small/wide go in a circle"),
        ("narrow", "the bases of small/wide, small/narrow, other/broad go in a circle"),
    ],
)
def test_a_base_that_is_no_other_arm_is_one_sentence(claims, base, said):
    write_claim(claims, with_arms("broad: {base: small/wide}"), "other")
    write_claim(claims, with_arms(f"wide: {{base: {base}}}", "narrow: {base: other/broad}"))
    with pytest.raises(UserError, match=said) as caught:
        load_claim("small", "smoke")
    assert "\n" not in str(caught.value)


def test_an_unknown_claim_or_override_is_one_sentence(small):
    with pytest.raises(UserError, match="choose one of small"):
        load_claim("large", "demo")
    small.overrides["model.widht"] = 3
    with pytest.raises(UserError, match="arm wide: Key 'widht' is not in struct"):
        Planner(small).test_runs((0,))


def test_targets_are_found_at_any_depth():
    config = {"a": {"_target_": "x.Y", "b": [{"_target_": "z.W"}]}, "c": 1}
    assert list(targets(config)) == ["x.Y", "z.W"]


@pytest.mark.parametrize("scale", ["smoke", "demo", "paper"])
@pytest.mark.parametrize("name", claim_names())
def test_every_claim_plans_its_runs_at_every_scale(name, scale, monkeypatch):
    # The data of a claim are not made or downloaded here.
    monkeypatch.setattr(Planner, "_source", lambda self, data: "generated")
    claim = load_claim(name, scale)
    planner = Planner(claim)
    runs = planner.test_runs(claim.seeds)
    assert {run.arm for run in runs} == set(claim.arms)
    assert all(len(run.key) == 12 for run in runs)
    if claim.tune:
        assert {run.seed for run in planner.tuning_runs()}.isdisjoint(claim.seeds)


@pytest.mark.parametrize("scale", ["demo", "paper"])
@pytest.mark.parametrize(
    ("name", "ours", "sizes"),
    [
        ("memno_low_resolution", "memory", {"none": 1}),
        ("fno_deq_ns", "fno-deq", {"fno, 4.0 x": 4, "fno++, 4 blocks": 3.25, "fno-wt": 1}),
        ("fno_deq_darcy", "fno-deq", {"fno, 4.0 x": 4, "fno++, 4 blocks": 3.25, "fno-wt": 1}),
    ],
)
def test_arms_are_as_large_as_their_claim_says(name, ours, sizes, scale, monkeypatch):
    monkeypatch.setattr(Planner, "_source", lambda self, data: "generated")
    runs = {run.arm: run for run in Planner(load_claim(name, scale)).test_runs((0,))}
    models = {arm: instantiate(runs[arm].config.model) for arm in [ours, *sizes]}
    count = {arm: sum(p.numel() for p in model.parameters()) for arm, model in models.items()}
    for arm, size in sizes.items():
        assert count[arm] / count[ours] == pytest.approx(size, rel=0.05 if size == 1 else 0.005)
