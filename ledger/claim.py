"""A claim as `configs/claim/<name>.yaml` states it, and the runs that test it."""

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from errors import UserError, first_line
from ledger.code import relevant_code
from train import CONFIGS

CLAIMS = CONFIGS / "claim"
Overrides = dict[str, Any]
Case = dict[str, str]
"""One label of every factor, such as {"leaves": "64", "planted depth": "3"}."""

OF_RUNS = ("overrides", "arms", "cases", "select", "tune")
UNTESTED: Overrides = {"trainer.limit_test_batches": 1}
"""Of tuning: nothing is chosen by the test split, so it is not measured either."""
OF_THE_MACHINE = ("data_dir", "cache_dir", "num_workers")


@dataclass(frozen=True)
class Statistic:
    """What is computed from the seeds, once per case and rival.

    Attributes:
        name: what it is called in tables.
        kind: `ratio` (geometric mean; how many times better), `difference` (mean; how much better),
            `deviations` (the same in standard deviations of the rival over the seeds), `recovered`
            (ours − rival over reference − rival, the share of a gap that ours closes), `value`
            (mean of one arm's metric); or, of a metric that is a list over training, beside the
            reference's, `rank_correlation` (Spearman's; with a rival, how much more than its own)
            or `log_distance` (mean |log|; with a rival, how much less than its own). Better is what
            the claim's `maximise` says, so a ratio above 1 and a difference above 0 always speak
            for `ours`.
        ours: the arm the paper speaks for.
        rivals: the arms that it is held against; none for `value`.
        reference: the arm at the other end of the gap, or whose training is the model.
        beside: dotted place in a run's own report, such as `bigram.cross_entropy`, of the number
            that it is held against, instead of rivals.
        where: labels of the cases it is for; the others have none.
        metric: dotted place in a run's report, instead of the claim's.
        at_least, at_most: what the paper's sentence asks for; without either it is only shown.
        condition: not what the paper says but what the comparison presupposes: where it does not
            hold, the verdict is inconclusive.
    """

    name: str
    kind: Literal[
        "ratio",
        "difference",
        "deviations",
        "recovered",
        "value",
        "rank_correlation",
        "log_distance",
    ]
    ours: str
    rivals: tuple[str, ...] = ()
    reference: str | None = None
    beside: str | None = None
    where: Case = field(default_factory=dict)
    metric: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    condition: bool = False

    @property
    def asked(self) -> str:
        """The bound, for people; empty where there is none."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"


@dataclass(frozen=True)
class Pretrained:
    """A run of a claim, of equal seed, whose weights or records an arm begins with.

    Attributes:
        claim, arm: whose run it is.
        case: one label of every factor of that claim.
        place: where its folder stands in the config.
    """

    claim: str
    arm: str
    case: Case = field(default_factory=dict)
    place: str = "model.pretrained"


@dataclass(frozen=True)
class Arm:
    """One way of doing it: an experiment, or a study (a function with its arguments).

    In the file, `base` names another arm, or `claim/arm` of another claim, which lends all that it
    has. The overrides and the labels of `when` that the arm has itself are added to the lent ones,
    or replace those of their name; anything else that it has replaces what is lent.

    Attributes:
        experiment: name of a config in configs/experiment.
        study: `_target_` and arguments of a function of `seed` that returns a report.
        pretrained: the run that it goes on from.
        overrides: what differs from the experiment's own config: values by their dotted places, and
            choices among the files of a folder, such as `glue: stsb`.
        tuned: what tuning found best; for demo scale, as paper scale has the published settings.
        when: further overrides in the cases that bear a label.
        grid: what is tuned of this arm beside the claim's own grid.
    """

    experiment: str | None = None
    study: dict[str, Any] | None = None
    pretrained: Pretrained | None = None
    overrides: Overrides = field(default_factory=dict)
    tuned: Overrides = field(default_factory=dict)
    when: dict[str, Overrides] = field(default_factory=dict)
    grid: dict[str, list] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning:
    """What is tried on validation data before the protocol is frozen.

    Attributes:
        seeds: seeds that no test run uses.
        grid: values of every override, alike for every arm; all combinations are tried. An arm
            without anything to tune is not run.
        case: where it is tried, one label a factor.
        overrides: of the tuning runs, such as a single depth.
    """

    seeds: tuple[int, ...]
    grid: dict[str, list] = field(default_factory=dict)
    case: Case = field(default_factory=dict)
    overrides: Overrides = field(default_factory=dict)


@dataclass(frozen=True)
class Pace:
    """Seconds a training step takes, measured with one arm on the machine at once.

    Attributes:
        steps: how many are timed.
        equal: label of the cases in which all arms train for the same time; at demo scale alone.
        case: where it is measured, one label a factor.
    """

    steps: int
    equal: str
    case: Case = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A claim at one scale.

    Attributes:
        name, scale: as chosen.
        title: the claim in one line.
        paper: authors, title, arXiv number.
        sentence: what the paper says, in our words.
        published: its numbers, with how far they can be trusted.
        protocol: how it is tested, for readers.
        metric: dotted place in a run's report, such as `test.rmse`.
        maximise: whether more of it is better.
        seeds: of the test runs.
        minutes: about how long all of it takes on two CPU cores.
        overrides: what every run differs by from its experiment's own config. In the file, the
            name of another claim stands for its overrides.
        arms, cases: every arm runs in every case, the product of the factors' labels.
        select: values of overrides; the run best on validation data stands for the others.
        statistics: what is computed, and which values count as reproduced.
        tune, pace: what was done before the protocol was frozen.
        alone: a time is measured: nothing runs beside a run.
        figure: what is drawn, see `ledger.figures`.
        limits: what the verdict does not say.
        paper_table: what the paper measured of the arms, by where: shown under our own table.
    """

    name: str
    scale: str
    title: str
    paper: str
    sentence: str
    published: str
    protocol: str
    metric: str
    maximise: bool
    seeds: tuple[int, ...]
    minutes: float
    arms: dict[str, Arm]
    statistics: tuple[Statistic, ...]
    overrides: Overrides = field(default_factory=dict)
    cases: dict[str, dict[str, Overrides]] = field(default_factory=dict)
    select: dict[str, list] = field(default_factory=dict)
    tune: Tuning | None = None
    pace: Pace | None = None
    alone: bool = False
    figure: dict[str, Any] = field(default_factory=dict)
    limits: str = ""
    paper_table: dict[str, dict[str, float]] = field(default_factory=dict)

    def settings(self, arm: str) -> list[Overrides]:
        """All that is tried of an arm in tuning."""
        assert self.tune is not None
        grid = self.tune.grid | self.arms[arm].grid
        return combinations(grid) if grid else []

    def all_cases(self) -> list[Case]:
        """Every combination of the factors' labels; one empty case where there are none."""
        return [
            dict(zip(self.cases, labels, strict=True))
            for labels in itertools.product(*self.cases.values())
        ]

    def statistics_cases(self, statistic: Statistic) -> list[Case]:
        """The cases that a statistic is for."""
        return [c for c in self.all_cases() if statistic.where.items() <= c.items()]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; what few claims use is left out by those that do not."""
        plain = asdict(self)
        rare = {"pretrained": None, "grid": {}, "place": "model.pretrained"}
        rare |= {"beside": None, "reference": None, "condition": False}
        begun = [arm["pretrained"] for arm in plain["arms"].values() if arm["pretrained"]]
        for part in (*begun, *plain["arms"].values(), *plain["statistics"]):
            for name in rare.keys() & part.keys():
                if part[name] == rare[name]:
                    del part[name]
        if not self.paper_table:
            del plain["paper_table"]
        return plain


@dataclass(frozen=True)
class Run:
    """One training, or one call of a study.

    Attributes:
        arm, case, seed: which one it is.
        chosen: the selected or tuned overrides by which it differs from its siblings.
        config: all that it depends on, resolved but for the folder.
        key: 12 hex digits, equal for equal configs and equal relevant code.
        after: the run that must be done before.
    """

    arm: str
    case: Case
    seed: int
    chosen: Overrides
    config: DictConfig
    key: str
    after: "Run | None" = None

    @property
    def label(self) -> str:
        """What it is, for people."""
        parts = [self.arm, *(f"{k} {v}" for k, v in self.case.items())]
        parts += [f"{k.rsplit('.', 1)[-1]} {v}" for k, v in self.chosen.items()]
        return " · ".join([*parts, f"seed {self.seed}"])

    @property
    def folder(self) -> str:
        """The name of its folder."""
        what = self.config.get("experiment_name") or str(self.config.study._target_).split(".")[-2]
        return f"{what}-{self.key}"

    @property
    def line(self) -> "list[Run]":
        """The runs that it goes on from, and itself."""
        return [*(self.after.line if self.after else []), self]


def claim_names() -> list[str]:
    """Every claim there is."""
    return sorted(path.stem for path in CLAIMS.glob("*.yaml"))


def load_claim(name: str, scale: str) -> Claim:
    """Read and check a claim.

    Raises:
        UserError: there is no such claim, or its file is not what a claim must be.
    """
    path = _path(name)
    try:
        cfg = cast(DictConfig, OmegaConf.merge(OmegaConf.load(path), {"scale": scale}))
        # Overrides belong to the config of a run and are resolved there.
        raw = _with_lent(name, _dict_of(cfg, resolve=False))
        plain = {key: value if key in OF_RUNS else _plain(cfg, key) for key, value in raw.items()}
        claim = _claim(name, plain)
    except (OmegaConfBaseException, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} does not state a claim: {first_line(error)}.") from error
    _check(claim, path)
    return claim


def _path(name: str) -> Path:
    path = CLAIMS / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"there is no claim {name!r}: choose one of {', '.join(claim_names())}.")
    return path


def _with_lent(name: str, raw: dict[str, Any]) -> dict[str, Any]:
    """A claim's file with what is lent to it: another claim's overrides, and the arms' bases."""
    files = {name: raw}

    def part(claim: str, key: str) -> Any:
        if claim not in files:
            files[claim] = _dict_of(cast(DictConfig, OmegaConf.load(_path(claim))), resolve=False)
        return files[claim][key]

    def whole(claim: str, arm: str, takers: tuple[str, ...] = ()) -> dict[str, Any]:
        own = {**part(claim, "arms")[arm]}
        base = own.pop("base", None)
        if base is None:
            return own
        lender, lent = base.split("/", 1) if "/" in base else (claim, base)
        takers = (*takers, f"{claim}/{arm}")
        if lent not in part(lender, "arms"):
            raise UserError(
                f"{_path(claim)}: the base of arm {arm} is {base!r}, which is no arm: choose one "
                f"of {', '.join(part(lender, 'arms'))}, or of another claim as claim/arm."
            )
        if f"{lender}/{lent}" in takers:
            circle = ", ".join(takers)
            raise UserError(
                f"{_path(claim)}: the bases of {circle} go in a circle: give one of them an "
                "experiment or a study instead."
            )
        taken = whole(lender, lent, takers)
        for key in own.keys() & {"overrides", "when"}:
            own[key] = taken.get(key, {}) | own[key]
        return taken | own

    overrides = raw.get("overrides", {})
    if isinstance(overrides, str):
        overrides = part(overrides, "overrides")
    return raw | {"overrides": overrides, "arms": {arm: whole(name, arm) for arm in raw["arms"]}}


def _dict_of(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=resolve))


def _plain(cfg: DictConfig, key: str) -> Any:
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _claim(name: str, plain: dict[str, Any]) -> Claim:
    unknown = plain.keys() - {f.name for f in fields(Claim)}
    if unknown:
        raise TypeError(f"unknown {', '.join(sorted(unknown))}")
    tune, pace = plain.get("tune"), plain.get("pace")
    labelled = {
        factor: {str(label): overrides or {} for label, overrides in labels.items()}
        for factor, labels in plain.get("cases", {}).items()
    }
    if pace and plain["scale"] != "demo":
        for labels in labelled.values():
            labels.pop(pace["equal"], None)
    statistics = []
    for statistic in plain["statistics"]:
        rivals = statistic.get("rivals", ())
        if rivals == "all":
            rivals = [arm for arm in plain["arms"] if arm != statistic["ours"]]
        where = _texts(statistic.get("where", {}))
        replaced = {"rivals": tuple(rivals), "where": where}
        arms = plain["arms"] if statistic["ours"] == "all" else [statistic["ours"]]
        statistics += [Statistic(**statistic | replaced | {"ours": arm}) for arm in arms]
    replaced = {
        "name": name,
        "seeds": tuple(plain["seeds"]),
        "arms": {arm: _arm(arguments) for arm, arguments in plain["arms"].items()},
        "cases": labelled,
        "statistics": tuple(statistics),
        "tune": tune
        and Tuning(**tune | {"seeds": tuple(tune["seeds"]), "case": _texts(tune.get("case", {}))}),
        "pace": pace and Pace(**pace | {"case": _texts(pace.get("case", {}))}),
    }
    return Claim(**plain | replaced)


def _arm(arguments: dict[str, Any]) -> Arm:
    given = arguments.get("pretrained")
    pretrained = given and Pretrained(**given | {"case": _texts(given.get("case", {}))})
    replaced: dict[str, Any] = {"pretrained": pretrained}
    return Arm(**arguments | replaced)


def _texts(case: Mapping) -> Case:
    return {factor: str(label) for factor, label in case.items()}


def _check(claim: Claim, path: Path) -> None:
    for statistic in claim.statistics:
        named = {statistic.ours, *statistic.rivals, statistic.reference or statistic.ours}
        unknown = named - claim.arms.keys()
        if unknown:
            raise UserError(f"{path}: {statistic.name} names no arm of the claim: {unknown}.")
        if not claim.statistics_cases(statistic):
            raise UserError(f"{path}: no case is {statistic.where}, where {statistic.name} is.")
        against = bool(statistic.rivals) + bool(statistic.beside)
        kind, of_lists = statistic.kind, ("rank_correlation", "log_distance")
        referring = ("recovered", *of_lists)
        if kind not in of_lists and against != (0 if kind == "value" else 1):
            raise UserError(
                f"{path}: a ratio or difference needs rivals, or what stands beside; a value has "
                "none."
            )
        if (statistic.reference is None) is (kind in referring):
            raise UserError(f"{path}: {', '.join(referring)}, and no other, need a reference.")
    for arm, what in claim.arms.items():
        if (what.experiment is None) is (what.study is None):
            raise UserError(f"{path}: arm {arm} must name an experiment or a study, not both.")
    for where, row in claim.paper_table.items():
        if row.keys() - claim.arms.keys():
            raise UserError(f"{path}: the paper's table of {where} has no arm of the claim's.")
    labels = {label for factor in claim.cases.values() for label in factor}
    for arm, what in claim.arms.items():
        # The label of equal times is there at demo scale alone.
        unknown = what.when.keys() - labels - {claim.pace.equal if claim.pace else None}
        if unknown:
            raise UserError(f"{path}: arm {arm} differs when {unknown}, which no case bears.")
    for part in (claim.tune, claim.pace):
        if part and part.case not in claim.all_cases():
            raise UserError(f"{path}: {part.case} is no case of the claim.")
    if claim.tune and set(claim.tune.seeds) & set(claim.seeds):
        raise UserError(f"{path}: a seed is both tuned and tested on.")


class Planner:
    """Turns arms, cases and seeds of a claim into runs.

    Args:
        claim: what is tested.
        trainer: config of configs/trainer; None takes the CPU, or the GPU at paper scale.
    """

    def __init__(self, claim: Claim, trainer: str | None = None):
        self.claim = claim
        self.trainer = trainer or ("gpu" if claim.scale == "paper" else "cpu")
        self._composed: dict[tuple, DictConfig] = {}
        self._others: dict[str, Planner] = {}
        self._sources: dict[str, str] = {}

    def test_runs(self, seeds: tuple[int, ...]) -> list[Run]:
        """Every arm in every case with every seed and every value to select from."""
        return [
            self._run(arm, case, seed, chosen)
            for seed in seeds
            for case in self.claim.all_cases()
            for arm in self.claim.arms
            for chosen in combinations(self.claim.select)
        ]

    def tuning_runs(self) -> list[Run]:
        """Every arm with every setting of the grid."""
        tune = self.claim.tune
        assert tune is not None
        last = tune.overrides | UNTESTED
        return [
            self._run(arm, tune.case, seed, setting, last)
            for seed in tune.seeds
            for arm in self.claim.arms
            for setting in self.claim.settings(arm)
        ]

    def pace_runs(self) -> list[Run]:
        """Every arm for a few steps."""
        pace = self.claim.pace
        assert pace is not None
        few = {"trainer.max_epochs": 1, "trainer.limit_train_batches": pace.steps}
        few |= {"trainer.limit_val_batches": 1, "trainer.limit_test_batches": 1}
        return [self._run(arm, pace.case, 0, {}, few) for arm in self.claim.arms]

    def _run(
        self, arm: str, case: Case, seed: int, chosen: Overrides, last: Overrides | None = None
    ) -> Run:
        what = self.claim.arms[arm]
        overrides = self.claim.overrides | what.overrides
        overrides |= what.tuned if self.claim.scale == "demo" else {}
        for factor, label in case.items():
            overrides |= self.claim.cases[factor][label] | what.when.get(label, {})
        overrides |= chosen | (last or {})
        after = None
        if what.pretrained:
            lender = self._other(what.pretrained.claim)
            after = lender.pretraining(what.pretrained, seed)
            overrides |= {what.pretrained.place: f"${{run_dir}}/../{after.folder}"}
        try:
            make = self._study if what.study else self._training
            config = make(what, overrides, seed)
            resolved = _dict_of(config)
            # An override may refer to the config: layers equal to the planted depth.
            place = config.get("study", config)
            chosen = {key: OmegaConf.select(place, key) for key in chosen}
        except OmegaConfBaseException as error:
            where = f"claim {self.claim.name}, arm {arm}"
            raise UserError(f"{where}: {first_line(error)}.") from error
        return Run(arm, case, seed, chosen, config, key_of(resolved), after)

    def pretraining(self, what: Pretrained, seed: int) -> Run:
        """The run with which another claim's arm begins.

        A seed of the tuning has the run that tuned it, if the setting is the one that was chosen.
        """
        if what.arm not in self.claim.arms or what.case not in self.claim.all_cases():
            raise UserError(
                f"claim {self.claim.name} has no arm {what.arm!r} in the case {what.case}, which "
                "another claim goes on from."
            )
        tuning = self.claim.tune is not None and seed in self.claim.tune.seeds
        return self._run(what.arm, what.case, seed, {}, UNTESTED if tuning else None)

    def _other(self, claim: str) -> "Planner":
        if claim not in self._others:
            self._others[claim] = Planner(load_claim(claim, self.claim.scale), self.trainer)
        return self._others[claim]

    def _study(self, what: Arm, overrides: Overrides, seed: int) -> DictConfig:
        assert what.study is not None
        return OmegaConf.create({"study": what.study | overrides | {"seed": seed}})

    def _training(self, what: Arm, overrides: Overrides, seed: int) -> DictConfig:
        # What names a folder of configs, such as `glue: stsb`, is a choice among its files.
        groups = {
            key: file
            for key, file in overrides.items()
            if (CONFIGS / key.removeprefix("+").split("@")[0]).is_dir()
        }
        experiment, choices = what.experiment, tuple(f"{k}={v}" for k, v in groups.items())
        if (experiment, choices) not in self._composed:
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                self._composed[experiment, choices] = compose(
                    "train",
                    [
                        f"experiment={experiment}",
                        *choices,
                        f"scale={self.claim.scale}",
                        f"trainer={self.trainer}",
                        f"experiment_name={experiment}",
                        "compare=null",
                        "++callbacks.pictures=null",
                        "+callbacks.progress.refresh_rate=0",
                    ],
                )
        cfg = copy.deepcopy(self._composed[experiment, choices])
        cfg.seed = seed
        for key, value in overrides.items():
            if key in groups:
                continue
            # A leading + adds what the experiment does not have, as on Hydra's command line. What
            # has parts, such as another memory, takes the place of all that was there.
            where, new = key.removeprefix("+"), key.startswith("+")
            OmegaConf.update(cfg, where, value, merge=False, force_add=new)
        if "source" in cfg.data:
            cfg.data.source = self._source(cfg.data)
        return cfg

    def _source(self, data: DictConfig) -> str:
        """The source that `auto` finds, so that runs on other data are other runs."""
        known = {k: v for k, v in _dict_of(data).items() if not k.startswith("shuffle")}
        text = json.dumps(known, sort_keys=True)
        if text not in self._sources:
            datamodule = instantiate(data, _convert_="all")
            datamodule.prepare_data()
            self._sources[text] = datamodule.source_used
        return self._sources[text]


def combinations(values: Mapping[str, list]) -> list[Overrides]:
    """Every combination of the values of some overrides; one empty one of none."""
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


def key_of(config: Mapping[str, Any]) -> str:
    """12 hex digits of a resolved config and of the code that its run executes."""
    known = {k: v for k, v in config.items() if k not in ("run_dir", "runs_dir")}
    if "data" in known:
        known["data"] = {k: v for k, v in known["data"].items() if k not in OF_THE_MACHINE}
    code = relevant_code({"train", *targets(config)})
    text = json.dumps([known, code], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def targets(config: object) -> Iterator[str]:
    """Every `_target_` in a config."""
    if isinstance(config, Mapping):
        if isinstance(config.get("_target_"), str):
            yield config["_target_"]
        for value in config.values():
            yield from targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from targets(value)
