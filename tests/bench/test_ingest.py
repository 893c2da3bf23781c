import json
import os
import subprocess
import sys
from pathlib import Path

from tests.bench.measure import ROOT
from tests.bench.systems import SYSTEMS
from tests.bench.traffic import Topics, clicks, fill, read_back


def test_the_plain_loop_answers_every_click_once(broker: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.ingest", "--quick", "--systems", "plain_loop", "--out", str(tmp_path)]
    ran = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"FUNNELCAST_BROKER": broker}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])["systems"]["plain_loop"]
    assert found["events_per_second"] > 0, found
    assert found["check"]["lost_or_repeated"] == 0
    assert found["check"]["read"] > 0


def test_the_read_back_finds_what_was_lost_and_what_was_repeated(broker: str, unique) -> None:
    topic, topics = unique("answers"), Topics(broker)
    topics.create(topic)
    said = [("a", 1), ("b", 1), ("a", 2), ("a", 2), ("b", 3), ("b", 4)]
    fill(
        broker,
        topic,
        ((0, user.encode(), 1, b'{"user_id":"%b","events":%d}' % (user.encode(), number)) for user, number in said),
    )
    assert read_back(broker, topic, b"events") == {"read": 6, "lost_or_repeated": 2}
    topics.delete(topic)


def test_the_clicks_are_the_same_every_time_and_in_the_order_of_their_times() -> None:
    one, other = (list(clicks(1000, 50, 1_700_000_000_000, 86_400_000)) for _ in range(2))
    assert one == other
    assert [click[2] for click in one] == sorted(click[2] for click in one)
    assert {key: partition for partition, key, _, _ in one} == {key: int(key[1:]) % 4 for _, key, _, _ in one}


def test_every_system_says_what_its_figures_include() -> None:
    assert all(system.includes and system.title for system in SYSTEMS.values())
