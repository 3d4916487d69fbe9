"""What a judgement leaves behind: plain data that results.json holds and reports read.

SCHEMA_VERSION changes with any change of meaning. Times are nanoseconds as measured, every sample kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 2


@dataclass
class CaseRecord:
    """One call that was checked. error, baseline_error: the worst of anything the call gave (tolerance.Error). share:
    {element, row, bias}, the most that an error took of what was allowed. tolerance: by output, as it was held against
    the candidate, the baseline's own error included; what ill-conditioned rows are granted beside it is in share.
    """

    case: str
    family: str
    phase: str
    dtype: str
    shapes: str
    verdict: str
    message: str = ""
    error: dict[str, float] = field(default_factory=dict)
    baseline_error: dict[str, float] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    tolerance: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Samples:
    """Raw times of one visit: nanoseconds of each call, in order, and what was read beside them."""

    restart: int
    block: int
    side: str
    is_cold: bool
    claim_ns: list[int]
    device_ns: list[int]
    settle_ns: list[int]
    enqueue_ns: list[int]
    clocks: dict[str, Any] = field(default_factory=dict)


@dataclass
class TimingRecord:
    """Speed on one case. ratio: baseline / candidate, median of pairs; low, high: 95 % interval.

    noise_floor: what the baseline against itself strays. speed: WIN, LOSS or TIE. roofline_share: of the
    ceiling that the op's own bytes and flops allow, for the candidate and the baseline. late_us: charged
    to each of the candidate's calls, whose answers came so late after DONE (a CPU's alone; samples are as measured).
    suspicion: what the clocks said against the candidate in this trial. varied: the inputs that differed from call to
    call; with none of them, remembered answers would not have been found out. init: how the op was built
    (Case.init_text), "" in runs of before.
    """

    case: str
    phase: str
    dtype: str
    shapes: str
    clock: str
    ratio: float
    low: float
    high: float
    num_pairs: int
    noise_floor: float
    speed: str
    baseline_us: float
    candidate_us: float
    warm_baseline_us: float | None = None
    warm_candidate_us: float | None = None
    graph_baseline_us: float | None = None
    graph_candidate_us: float | None = None
    num_bytes: int = 0
    num_flops: int = 0
    floor_us: float = 0.0
    baseline_roofline_share: float = 0.0
    candidate_roofline_share: float = 0.0
    is_launch_bound: bool = False
    setup_seconds: float = 0.0
    num_checked: int = 0
    late_us: float = 0.0
    suspicion: str = ""
    varied: list[str] = field(default_factory=list)
    init: str = ""
    samples: list[Samples] = field(default_factory=list)


@dataclass
class NullRecord:
    """One wrong answer held against one op: rejected, or passed (the op is untestable), or not applicable."""

    dtype: str
    null: str
    outcome: str  # "rejected", "passed", "not applicable"
    reason: str = ""


@dataclass
class OpRecord:
    """The judgement of one implementation of one op. suspected: trials whose clocks spoke against it; the same case was
    timed again, and the verdict is CHEATING only when all trials of a case are suspected. launched: kernels of one
    call, on a CPU operators of PyTorch, as the candidate's own process says. peak_memory_bytes: of the host's memory,
    whatever the device: what the candidate's processes held. set_sha256: of all files of the set, as they were when
    this was judged or last found to hold; "" in runs of before."""

    op: str
    level: int
    implementation: str
    source_path: str
    source_sha256: str
    device: str
    verdict: str
    message: str = ""
    witness: str = ""
    cases: list[CaseRecord] = field(default_factory=list)
    timings: list[TimingRecord] = field(default_factory=list)
    suspected: list[TimingRecord] = field(default_factory=list)
    nulls: list[NullRecord] = field(default_factory=list)
    num_calls: int = 0
    peak_memory_bytes: int = 0
    seconds: float = 0.0
    seed: int = 0
    confinement: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    baseline_source: str = ""
    launched: list[str] = field(default_factory=list)
    set_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
