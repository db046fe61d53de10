"""What a report says of speed: in turns, never for wrong masks, and against an earlier one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.processes import run_python
from wsss_rt.benchmark import turns
from wsss_rt.benchmark.compare import compare, read_report, refuse_worse
from wsss_rt.benchmark.findings import remarks, verdict
from wsss_rt.benchmark.report import ModelRow, PipelineRow, Report, speed_ups
from wsss_rt.benchmark.table import show, show_changes
from wsss_rt.benchmark.turns import ROUNDS, Task, run_in_turns
from wsss_rt.errors import UsageError, WsssError

FIRST, SECOND = "onnxruntime float32", "openvino bfloat16"
TIMES = {"count": 9, "mean": 2.0, "p50": 1.0, "p90": 3.0, "p95": 4.0, "p99": 9.0}


def model_row(engine: str, rate: float, *, agrees: bool = True, batch: int = 1) -> ModelRow:
    return ModelRow(
        engine, batch, (64, 96), agrees, rate, TIMES, 50.0, 2_000_000_000, {"MatMul": 2_000_000_000}, (),
        2e9 * rate, 2e9 * rate / 1e12, 4_000_000, 4e6 * rate,
    )  # fmt: skip


def pipeline_row(engine: str, rate: float, *, agrees: bool = True, failed: int = 0) -> PipelineRow:
    stages = dict.fromkeys(("read", "decode", "prepare", "infer", "localize", "write", "total"), TIMES)
    return PipelineRow(engine, 1, agrees, rate, 2, failed, stages, 90_000_000)


def engine(name: str, *, passed: bool = True) -> dict[str, Any]:
    parity = {
        "worst": 1e-6 if passed else 0.25,
        "mean": 0.0 if passed else 0.031,
        "limit": 5e-3,
        "passed": passed,
    }
    return {
        "name": name,
        "file": "probe.onnx",
        "backend": name.split()[0],
        "precision": name.split()[1],
        "seconds": {"read": 0.01, "import": 0.5, "build": 0.25},
        "memory_bytes": 70_000_000,
        "product_flops_per_second": 1e12,
        "agreement": {
            "against": "float32 ONNX Runtime", "images": 8, "passed": passed,
            "scores": parity | {"passed": True}, "maps": parity | {"passed": True}, "masks": parity,
        },
    }  # fmt: skip


def report(*, wrong: bool = False, factor: float = 1.0, failed: int = 0) -> Report:
    rows = [model_row(FIRST, 10.0 * factor), model_row(SECOND, 30.0 * factor, agrees=not wrong)]
    pipeline = [pipeline_row(FIRST, 5.0), pipeline_row(SECOND, 10.0, agrees=not wrong, failed=failed)]
    return Report(
        model={"name": "probe", "file": "probe.onnx", "method": "mctformer-v2", "classes": 3},
        settings={"threads": 2, "refine": "none", "tags": "predicted"},
        images={"source": "4 generated scenes", "count": 4},
        copy_rate=8e9,
        engines=[engine(FIRST), engine(SECOND, passed=not wrong)],
        skipped={"onnxruntime bfloat16": "bfloat16 runs in OpenVINO on the CPU only"},
        model_rows=speed_ups(rows, FIRST),
        pipeline_rows=speed_ups(pipeline, FIRST),
        machine={"processor": "Xeon", "processors": 2, "load_before": 0.5},
        versions={"python": "3.11"},
    )


def test_every_task_gets_its_time_in_turns_and_no_call_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = 0.0
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: now))

    def step(name: str, seconds: float) -> Task:
        def run() -> None:
            nonlocal now
            order.append(name)
            now += seconds

        return Task(run, images=4)

    slow, quick = step("slow", 0.03), step("quick", 0.001)
    run_in_turns([slow, quick], 0.05)
    assert slow.samples.count == order.count("slow") >= 5 and quick.samples.count == order.count("quick") >= 5
    assert slow.seconds >= 0.05 and quick.seconds >= 0.05
    slices = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert slices == ["slow", "quick"] * ROUNDS
    assert slow.images_per_second == pytest.approx(4 * slow.samples.count / slow.seconds)
    assert slow.samples.summary()["mean"] == pytest.approx(1e3 * slow.seconds / slow.samples.count, abs=1e-3)


def test_memory_is_what_the_block_added() -> None:
    # in a small process: the kernel takes back pages of a large one's libraries whenever it likes
    done = run_python(
        "from wsss_rt.benchmark.memory import peak_growth\n"
        "with peak_growth() as growth:\n"
        "    block = bytearray(b'x') * 64_000_000\n"
        "with peak_growth() as after:\n"
        "    pass\n"
        "print(growth.bytes, after.bytes)"
    )
    assert done.returncode == 0, done.stderr
    taken, later = done.stdout.split()
    if taken == "None":
        pytest.skip("the system does not tell")
    assert 50_000_000 < int(taken) < 100_000_000
    assert int(later) < 30_000_000


def test_a_speed_up_is_over_the_same_work_of_the_first_engine() -> None:
    rows = [model_row(FIRST, 10.0), model_row(SECOND, 30.0), model_row(SECOND, 50.0, batch=4)]
    assert [row.speed_up for row in speed_ups(rows, FIRST)] == [1.0, 3.0, None]


def test_wrong_masks_have_no_speed_up(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [model_row(FIRST, 10.0), model_row(SECOND, 30.0, agrees=False)]
    assert [row.speed_up for row in speed_ups(rows, FIRST)] == [1.0, None]
    # nor is anything faster than a wrong result
    rows = [model_row(FIRST, 10.0, agrees=False), model_row(SECOND, 30.0)]
    assert [row.speed_up for row in speed_ups(rows, FIRST)] == [None, None]
    show(report(wrong=True))
    out = capsys.readouterr().out
    assert "3.00" not in out and out.count("1.00") >= 2
    assert f"{SECOND} does not agree" in out and "masks differ by 3.10e-02, limit 5e-03" in out
    assert " NO" in out and "96.900" in out
    show(report())
    out = capsys.readouterr().out
    assert "3.00" in out and "2.00" in out and "does not agree" not in out


def test_the_last_line_says_which_engine_to_take(capsys: pytest.CaptureFixture[str]) -> None:
    said = verdict(report())
    assert f"{SECOND} is fastest, with 10 images/s, 2.00 times {FIRST}" in said
    assert "`--backend openvino --precision bfloat16`" in said
    # the fastest one is wrong
    assert f"{FIRST} is fastest, with 5 images/s in the whole labeller" in verdict(report(wrong=True))
    none = report(wrong=True)
    assert "none of these speeds" in verdict(
        replace(none, model_rows=[], pipeline_rows=none.pipeline_rows[1:])
    )
    show(report())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110 and "In short:" in "".join(lines[-4:])


def test_a_package_is_asked_for_by_its_file_and_shown_without_what_is_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = report()
    package = engine("aotinductor float32") | {"file": "probe.pt2"}
    fastest = replace(found.pipeline_rows[1], engine="aotinductor float32", images_per_second=20.0)
    beside = replace(found, engines=[*found.engines, package], pipeline_rows=[*found.pipeline_rows, fastest])
    assert "ask for it by `--model probe.pt2`" in verdict(beside)
    # a quantised file, too, is another one than the model
    int8 = package | {"name": fastest.engine, "backend": "openvino", "precision": "int8", "file": "q.onnx"}
    assert "`--model q.onnx --backend openvino --precision int8`" in verdict(replace(beside, engines=[int8]))
    alone = replace(
        found,
        model={**found.model, "file": "probe.pt2"},
        engines=[package | {"agreement": None, "product_flops_per_second": 0}],
        model_rows=[ModelRow("aotinductor float32", 1, (64, 96), False, 7.0, TIMES, 9.0)],
        pipeline_rows=[],
    )
    show(alone)
    out = " ".join(capsys.readouterr().out.split())
    assert "nobody compared the masks of aotinductor float32" in out and "unknown" in out
    assert "a package holds none" in out and "known to be right" in out and "% of products" not in out


def test_what_must_not_be_overlooked_is_said() -> None:
    lines = remarks(report(failed=3))
    assert "onnxruntime bfloat16 does not run here: bfloat16 runs in OpenVINO on the CPU only" in lines
    assert f"pipeline, {SECOND}, batch 1: 3 of 8 images failed" in lines


def test_second_looks_are_shown_where_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    show(report())
    assert "again:" not in capsys.readouterr().out
    found = report()
    mixed = replace(found.pipeline_rows[1], second_looks=6, second_looks_failed=2)
    found = replace(found, pipeline_rows=[found.pipeline_rows[0], mixed])
    show(found)
    out = capsys.readouterr().out
    # of the four images, in both of two runs
    assert "3 of 4" in out and "again: images that mixed ran once more in float32" in " ".join(out.split())
    assert "float32 failed on 2 of 8 images, which kept their bfloat16 masks" in out
    assert json.loads(found.to_json())["rows"][3]["second_looks"] == 6


def test_json_holds_what_the_tables_show() -> None:
    found = json.loads(report().to_json())
    assert found["schema_version"] == 1 and found["machine"]["processor"] == "Xeon"
    first = found["rows"][0]
    assert first["key"] == f"model, {FIRST}, batch 1, 64x96 px" and first["milliseconds"] == TIMES
    assert first["flops"] == 2_000_000_000 and first["share_of_products"] == 0.02
    assert found["rows"][3]["stages_ms"]["write"]["p99"] == 9.0
    assert found["engines"][0]["agreement"]["masks"]["passed"] is True


def test_an_earlier_report_is_held_against_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.json"
    path.write_text(report().to_json())
    before = read_report(path)
    same = compare(before, report().as_dict())
    assert [change.ratio for change in same] == [1.0] * 4
    refuse_worse(same, 0.0, "old.json")
    slower = compare(before, report(factor=0.85).as_dict())
    refuse_worse(slower, 0.2, "old.json")
    with pytest.raises(WsssError) as caught:
        refuse_worse(slower, 0.1, "old.json")
    assert caught.value.code == "slower" and caught.value.exit_code == 1
    assert "2 of 4 rows" in str(caught.value) and "-15.0 %" in str(caught.value)
    show_changes(slower, "old.json")
    assert "0.85" in capsys.readouterr().out


def test_rows_that_are_gone_or_wrong_now_are_worse_and_new_ones_are_not(tmp_path: Path) -> None:
    before, now = report().as_dict(), report(wrong=True, factor=2.0).as_dict()
    with pytest.raises(WsssError, match="no longer agree"):
        refuse_worse(compare(before, now), 0.5, "old.json")
    fewer = {**before, "rows": before["rows"][:3]}
    with pytest.raises(WsssError, match="not measured any more"):
        refuse_worse(compare(before, fewer), 0.5, "old.json")
    refuse_worse(compare(fewer, before), 0.0, "old.json")


def test_times_of_another_machine_or_of_other_work_are_not_compared() -> None:
    before = report().as_dict()
    other = {**before, "machine": {**before["machine"], "processor": "EPYC"}}
    with pytest.raises(UsageError, match="processor was Xeon, now EPYC"):
        compare(before, other)
    refined = {**before, "settings": {**before["settings"], "refine": "crf"}}
    with pytest.raises(UsageError, match="refine was none, now crf"):
        compare(before, refined)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"schema_version": 99, "rows": []}'])
def test_a_file_that_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(UsageError, match="no report of wsss-rt bench"):
        read_report(tmp_path / "old.json")
    with pytest.raises(UsageError, match="cannot read"):
        read_report(tmp_path / "none.json")
