"""Every alert fires for its trouble and for nothing else, and has a section in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yaml"))
RUNBOOK = ROOT / "deploy" / "docs" / "runbook.md"
JOB = 'job="shop/funnelcast"'
ONE, TWO = (f'{JOB}, instance="{name}:8080"' for name in ("one", "two"))
SECTION_PARTS = ("**What it means.**", "**Look at.**", "**Do.**")

# A healthy hour and a half of two workers: 10 clicks a second each, answered in 30 ms.
HEALTHY: dict[str, str] = {
    f"up{{{ONE}}}": "1x90",
    f"up{{{TWO}}}": "1x90",
    f"process_start_time_seconds{{{ONE}}}": "1000x90",
    f"funnelcast_ready{{{ONE}}}": "1x90",
    f'funnelcast_condition{{condition="broker", {ONE}}}': "1x90",
    f"funnelcast_recovery_remaining_messages{{{ONE}}}": "0x90",
    f'funnelcast_consumer_lag_messages{{partition="0", {ONE}}}': "3x90",
    f'funnelcast_consumer_lag_messages{{partition="1", {TWO}}}': "2x90",
    f'funnelcast_consumer_lag_seconds{{partition="0", {ONE}}}': "0.02x90",
    f'funnelcast_transaction_age_seconds{{partition="0", {ONE}}}': "0.01x90",
    f"funnelcast_transactions_committed_total{{{ONE}}}": "0+600x90",
    f'funnelcast_records_consumed_total{{partition="0", {ONE}}}': "0+600x90",
    f'funnelcast_records_consumed_total{{partition="1", {TWO}}}': "0+600x90",
    f'funnelcast_records_rejected_total{{reason="future", {ONE}}}': "0+1x90",
    f"funnelcast_events_late_total{{{ONE}}}": "0+10x90",
    f"funnelcast_stage_probabilities_emitted_total{{{ONE}}}": "0+600x90",
    f"funnelcast_stage_probabilities_degraded_total{{{ONE}}}": "0x90",
    f'funnelcast_end_to_end_seconds_bucket{{le="0.06", {ONE}}}': "0+598x90",
    f'funnelcast_end_to_end_seconds_bucket{{le="0.1", {ONE}}}': "0+600x90",
    f'funnelcast_end_to_end_seconds_bucket{{le="0.25", {ONE}}}': "0+600x90",
    f'funnelcast_end_to_end_seconds_bucket{{le="+Inf", {ONE}}}': "0+600x90",
    f'funnelcast_inference_seconds_bucket{{le="0.04", {ONE}}}': "0+600x90",
    f'funnelcast_inference_seconds_bucket{{le="0.25", {ONE}}}': "0+600x90",
    f'funnelcast_inference_seconds_bucket{{le="+Inf", {ONE}}}': "0+600x90",
    f"funnelcast_inference_failures_total{{{ONE}}}": "0x90",
    f"funnelcast_gpu_missing{{{ONE}}}": "0x90",
    f'funnelcast_model_info{{sha256="aa", {ONE}}}': "1x90",
    f'funnelcast_model_info{{sha256="aa", {TWO}}}': "1x90",
    f'funnelcast_reach_expected_total{{scope="user", stage="intent", {ONE}}}': "0+10x90",
    f'funnelcast_reach_observed_total{{scope="user", stage="intent", {ONE}}}': "0+11x90",
}

# name of the case -> (changed series, alerts that fire at minute 80); an empty value takes the series away
TROUBLE: dict[str, tuple[dict[str, str], set[str]]] = {
    "healthy": ({}, set()),
    "one worker does not answer": ({f"up{{{TWO}}}": "1x70 0x20"}, {"FunnelcastWorkerDown"}),
    "a scrape failed once": ({f"up{{{TWO}}}": "1x79 0 1x10"}, set()),
    "no worker is there at all": ({f"up{{{ONE}}}": "1x70 _x20", f"up{{{TWO}}}": "1x70 _x20"}, {"FunnelcastNoWorker"}),
    "not ready": ({f"funnelcast_ready{{{ONE}}}": "1x70 0x20"}, {"FunnelcastWorkerNotReady"}),
    "not ready during a rebalance": ({f"funnelcast_ready{{{ONE}}}": "1x78 0x12"}, set()),
    "not ready while it recovers": (
        {
            f"funnelcast_ready{{{ONE}}}": "1x70 0x20",
            f"funnelcast_recovery_remaining_messages{{{ONE}}}": "0x70 90000-9000x10",
        },
        set(),
    ),
    "no broker answers": (
        {
            f"funnelcast_ready{{{ONE}}}": "1x70 0x20",
            f'funnelcast_condition{{condition="broker", {ONE}}}': "1x70 0x20",
        },
        {"FunnelcastBrokerUnreachable"},
    ),
    "restarts again and again": (
        {f"process_start_time_seconds{{{ONE}}}": "1000x70 2000 3000 4000 5000x20"},
        {"FunnelcastWorkerRestarting"},
    ),
    "one rolling restart": ({f"process_start_time_seconds{{{ONE}}}": "1000x70 2000x20"}, set()),
    "recovery makes no progress": (
        {f"funnelcast_recovery_remaining_messages{{{ONE}}}": "0x60 5000x30"},
        {"FunnelcastRecoveryStuck"},
    ),
    "lag grows": (
        {f'funnelcast_consumer_lag_messages{{partition="0", {ONE}}}': "3x50 3+200x40"},
        {"FunnelcastLagGrowing"},
    ),
    "a large lag shrinks": (
        {f'funnelcast_consumer_lag_messages{{partition="0", {ONE}}}': "3x50 90000-2000x40"},
        set(),
    ),
    "a small lag grows": (
        {f'funnelcast_consumer_lag_messages{{partition="0", {ONE}}}': "3x50 3+20x40"},
        set(),
    ),
    "a click waits for minutes": (
        {f'funnelcast_consumer_lag_seconds{{partition="0", {ONE}}}': "0.02x70 30+60x20"},
        {"FunnelcastLagOld"},
    ),
    "a burst waits for a minute": (
        {f'funnelcast_consumer_lag_seconds{{partition="0", {ONE}}}': "0.02x78 62 0.02x10"},
        set(),
    ),
    "nothing is committed though clicks wait": (
        {f"funnelcast_transactions_committed_total{{{ONE}}}": "0+600x70 42000x20"},
        {"FunnelcastTransactionsStalled"},
    ),
    "nothing is committed because nothing came": (
        {
            f"funnelcast_transactions_committed_total{{{ONE}}}": "0+600x70 42000x20",
            f'funnelcast_consumer_lag_messages{{partition="0", {ONE}}}': "0x90",
            f'funnelcast_consumer_lag_messages{{partition="1", {TWO}}}': "0x90",
        },
        set(),
    ),
    "a transaction stays open": (
        {f'funnelcast_transaction_age_seconds{{partition="0", {ONE}}}': "0.01x79 25x10"},
        {"FunnelcastTransactionSlow"},
    ),
    "answers are slow": (
        {
            f'funnelcast_end_to_end_seconds_bucket{{le="0.06", {ONE}}}': "0+500x90",
            f'funnelcast_end_to_end_seconds_bucket{{le="0.1", {ONE}}}': "0+580x90",
        },
        {"FunnelcastEndToEndSlow"},
    ),
    "answers were slow for five minutes": (
        {
            f'funnelcast_end_to_end_seconds_bucket{{le="0.06", {ONE}}}': "0+598x75 44850+500x15",
            f'funnelcast_end_to_end_seconds_bucket{{le="0.1", {ONE}}}': "0+600x75 45000+580x15",
        },
        set(),
    ),
    "answers are slow, but there is hardly a click": (
        {
            **{f'funnelcast_end_to_end_seconds_bucket{{le="{le}", {ONE}}}': "0+5x90" for le in ("0.06", "0.1")},
            **{f'funnelcast_end_to_end_seconds_bucket{{le="{le}", {ONE}}}': "0+6x90" for le in ("0.25", "+Inf")},
            f'funnelcast_records_consumed_total{{partition="0", {ONE}}}': "0+6x90",
            f'funnelcast_records_consumed_total{{partition="1", {TWO}}}': "0x90",
            f'funnelcast_records_rejected_total{{reason="future", {ONE}}}': "0x90",
            f"funnelcast_events_late_total{{{ONE}}}": "0x90",
        },
        set(),
    ),
    "the clicks stopped": (
        {
            f'funnelcast_records_consumed_total{{partition="0", {ONE}}}': "0+600x60 36000x30",
            f'funnelcast_records_consumed_total{{partition="1", {TWO}}}': "0+600x60 36000x30",
        },
        {"FunnelcastNoTraffic"},
    ),
    "there never were clicks": (
        {
            f'funnelcast_records_consumed_total{{partition="0", {ONE}}}': "0x90",
            f'funnelcast_records_consumed_total{{partition="1", {TWO}}}': "0x90",
        },
        set(),
    ),
    "dead letters": (
        {f'funnelcast_records_rejected_total{{reason="future", {ONE}}}': "0+60x90"},
        {"FunnelcastDeadLettersRising"},
    ),
    "late events": ({f"funnelcast_events_late_total{{{ONE}}}": "0+120x90"}, {"FunnelcastLateEventsRising"}),
    "degraded answers": (
        {f"funnelcast_stage_probabilities_degraded_total{{{ONE}}}": "0x60 0+6x30"},
        {"FunnelcastAnswersDegraded"},
    ),
    "the network is slow": (
        {f'funnelcast_inference_seconds_bucket{{le="0.04", {ONE}}}': "0+500x90"},
        {"FunnelcastInferenceSlow"},
    ),
    "the network fails": (
        {f"funnelcast_inference_failures_total{{{ONE}}}": "0x60 0+1x30"},
        {"FunnelcastInferenceFailing"},
    ),
    "a GPU is missed": ({f"funnelcast_gpu_missing{{{ONE}}}": "1x90"}, {"FunnelcastGpuMissing"}),
    "two models answer": ({f'funnelcast_model_info{{sha256="aa", {TWO}}}': "",
                           f'funnelcast_model_info{{sha256="bb", {TWO}}}': "1x90"}, {"FunnelcastModelsDiffer"}),
    "a new model is rolled out": (
        {f'funnelcast_model_info{{sha256="aa", {TWO}}}': "1x72 _x20",
         f'funnelcast_model_info{{sha256="bb", {TWO}}}': "_x72 1x20",
         f'funnelcast_model_info{{sha256="aa", {ONE}}}': "1x76 _x20",
         f'funnelcast_model_info{{sha256="bb", {ONE}}}': "_x76 1x20"},
        set(),
    ),
    "the model promises too little": (
        {f'funnelcast_reach_observed_total{{scope="user", stage="intent", {ONE}}}': "0+20x90"},
        {"FunnelcastModelMiscalibrated"},
    ),
    "the model promises too much": (
        {f'funnelcast_reach_observed_total{{scope="user", stage="intent", {ONE}}}': "0+2x90"},
        {"FunnelcastModelMiscalibrated"},
    ),
    "a handful of predictions is no evidence": (
        {
            f'funnelcast_reach_expected_total{{scope="user", stage="intent", {ONE}}}': "0+1x90",
            f'funnelcast_reach_observed_total{{scope="user", stage="intent", {ONE}}}': "0x90",
        },
        set(),
    ),
}  # fmt: skip


def rules(kind: str) -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)


def case(changed: dict[str, str], firing: set[str]) -> dict[str, Any]:
    series = {**HEALTHY, **changed}
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items() if values],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "80m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)],
            }
        ],
    }


def test_the_rules_are_valid() -> None:
    done = promtool("check", "rules", "--lint=all", *RULES)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("name", TROUBLE)
def test_a_trouble_fires_its_own_alert_and_no_other(name: str, tmp_path: Path) -> None:
    tests = {
        "rule_files": [str(path) for path in RULES],
        "evaluation_interval": "1m",
        "group_eval_order": ["funnelcast-recording"],
        "tests": [case(*TROUBLE[name])],
    }
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump(tests))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_trouble_that_fires_it() -> None:
    assert {rule["alert"] for rule in rules("alert")} == set().union(*(firing for _, firing in TROUBLE.values()))


def test_every_alert_names_its_severity_and_says_what_is_wrong() -> None:
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL))
    alerts = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules("alert")}
    assert sections.keys() == alerts.keys()
    for name, url in alerts.items():
        assert url == f"deploy/docs/runbook.md#{name.lower()}"
        for part in SECTION_PARTS:
            assert part in sections[name], (name, part)
