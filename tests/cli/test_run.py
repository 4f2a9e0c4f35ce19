"""``headrace run`` and ``headrace describe`` on topologies of the user's."""

import contextlib
import dataclasses
import signal
import subprocess
import sys

import msgspec
import pytest

from headrace.cli.progress import Rate, RunProgress, summary
from headrace.runtime.hosts.status import RunStatus
from tests.cli.conftest import until

STATUS = RunStatus("running", 1, 4, 0, 0, 1000, 0, 0, 0, 0, None, None)

MODULE = """
from headrace import Topology

topology = Topology("{name}")


def checked(value):
    if value["n"] == 4711:
        raise ValueError(f"cannot do {{value}}")
    return {{"twice": 2 * value["n"]}}


topology.stream("numbers").map(checked).to("{name}-out")
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request) -> str:
    """A topology in the current folder, under a name that no other test has imported."""
    name = "topology_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (tmp_path / f"{name}.py").write_text(MODULE.format(name=name.replace("_", "-")))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def fill(headrace, *numbers):
    headrace("produce", "numbers", stdin=msgspec.json.Encoder().encode_lines([{"n": n} for n in numbers]))


def test_until_end(headrace, module):
    fill(headrace, 1, 2, 3)
    ran = headrace("run", module, "--until-end", "--metrics-port", "0", "--fsync", "never")
    assert ran.code == 0, ran.err
    assert ran.out == ""
    name = module.replace("_", "-")
    assert ran.err.splitlines()[-1].startswith(f"{name} finished: 3 records in, 3 out in ")
    found = headrace("consume", f"{name}-out").records
    assert sorted(record["value"]["twice"] for record in found) == [2, 4, 6]
    again = headrace("run", module, "--until-end", "--metrics-port", "0")
    assert f"{name} finished: 0 records in" in again.err


def test_settings_come_from_the_environment_and_options_go_first(headrace, module, monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_LOG", "log-of-variable")
    monkeypatch.setenv("HEADRACE_UNTIL_END", "true")
    monkeypatch.setenv("HEADRACE_METRICS_PORT", "0")
    monkeypatch.setenv("HEADRACE_CHECKPOINTS", "checkpoints-of-variable")
    fill(headrace, 1)
    assert headrace("run", module, "--checkpoints", "checkpoints-of-option").code == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert {"log-of-variable", "checkpoints-of-option"} <= made
    assert "checkpoints-of-variable" not in made


def test_a_failing_record_shows_the_users_line_and_not_the_record(headrace, module, tmp_path):
    fill(headrace, 1, 4711)
    ran = headrace("run", module, "--until-end", "--metrics-port", "0")
    assert ran.code == 1
    first, _, _ = ran.err.partition("error: ")
    assert f'{module}.py", line 9, in checked' in first
    assert "headrace/runtime" not in ran.err
    assert "error: step 'numbers-map-checked'" in " ".join(ran.err.split())
    assert "{'n'" not in ran.err


def test_a_field_that_is_missing_shows_no_generated_code(headrace, module, tmp_path):
    lines = [
        "from headrace import Topology, agg",
        "topology = Topology('t')",
        "topology.stream('numbers').key_by('n', key=int).aggregate(total=agg.sum('price'), name='totals').to('out')",
    ]
    (tmp_path / f"{module}.py").write_text("\n".join(lines))
    fill(headrace, 1)
    ran = headrace("run", module, "--until-end", "--metrics-port", "0")
    assert ran.code == 1
    assert ran.err.startswith("error: step 'totals' failed on the record at partition t-numbers-by-n-repartition/")
    assert "offset 0: KeyError: price" in ran.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{module}"], "reads topic 'numbers', which does not exist"),
        (["{module}:other"], "no topology called 'other'"),
        (["no_such_module"], "no module 'no_such_module'"),
        (["{module}", "--checkpoint-interval", "soon"], "--checkpoint-interval is not a duration"),
        (["{module}", "--cache", "big"], "--cache is not a size"),
        (["{module}", "--workers", "0"], "workers must be at least 1"),
        (["{module}", "--workers", "many"], "--workers"),
        (["{module}", "--fsync", "rarely"], "--fsync"),
        (["{module}", "--log", "nowhere"], "no log in nowhere"),
        (["{module}", "--log", "kafka://host"], "kafka://host:port"),
        (["{module}", "--checkpoints", "ftp://host"], "ftp://host"),
    ],
)
def test_wrong_use_has_exit_code_two(headrace, module, log, arguments, told):
    if arguments[-1] == "ftp://host":
        fill(headrace, 1)
    ran = headrace("run", *(argument.format(module=module) for argument in arguments), "--until-end")
    assert ran.code == 2, ran.err
    assert told in " ".join(ran.err.split())


def test_a_bad_variable_is_named(headrace, module, monkeypatch):
    monkeypatch.setenv("HEADRACE_WORKERS", "many")
    ran = headrace("run", module)
    assert (ran.code, ran.err) == (2, "error: HEADRACE_WORKERS is not a whole number: 'many'.\n")


@pytest.mark.parametrize("command", ["run", "describe"])
def test_a_module_that_cannot_be_imported_shows_its_own_lines_only(headrace, tmp_path, command):
    (tmp_path / "broken_module.py").write_text("import no_such_package\n")
    ran = headrace(command, "broken_module")
    assert ran.code == 1
    assert f'{tmp_path}/broken_module.py", line 1' in ran.err
    assert "No module named 'no_such_package'" in ran.err
    assert "importlib" not in ran.err


@pytest.mark.parametrize("command", ["run", "describe"])
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("agg.collect(limit=0)", "limit of agg.collect must be a whole number above 0, not 0"),
        ("topology.stream('x', value=5)", "value of stream('x') must be a type or a serde, not int"),
    ],
)
def test_a_mistake_is_shown_with_the_line_that_makes_it(headrace, tmp_path, command, mistake, message):
    module = tmp_path / "mistaken_topology.py"
    module.write_text(f"from headrace import Topology, agg\n\ntopology = Topology('t')\n{mistake}\n")
    ran = headrace(command, "mistaken_topology")
    sys.modules.pop("mistaken_topology", None)
    assert ran.code == 2
    first, second, *_, last = ran.err.splitlines()
    assert first == f'  File "{module}", line 4, in <module>'
    assert second == f"    {mistake}"
    assert last.startswith(f"error: {message}")


def test_a_line_that_the_message_names_is_not_shown_again(headrace, tmp_path):
    module = tmp_path / "nameless_topology.py"
    module.write_text("from headrace import Topology\n\nTopology('t').stream('x').branch()\n")
    ran = headrace("describe", "nameless_topology")
    assert ran.code == 2
    assert ran.err == (
        f"error: branch needs at least one predicate, such as big=... ({module}:3).\n"
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(headrace, start, module, number):
    fill(headrace, 1, 2, 3)
    process = start("run", module, "--metrics-port", "0")
    follower = start("consume", f"{module.replace('_', '-')}-out", "--follow")
    told = process.stderr.readline().decode()
    assert told.endswith(("running\n", "restoring\n"))
    process.send_signal(number)
    assert process.wait(20) == 0
    assert b" stopped: " in process.stderr.read().splitlines()[-1]
    follower.kill()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_before_the_end_of_the_input_is_told(headrace, start, tmp_path, workers):
    fill(headrace, *range(100))
    (tmp_path / "slow_topology.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from headrace import Topology\n"
        "def slow(row):\n"
        "    Path('begun').touch()\n"
        "    time.sleep(0.2)\n"
        "    return row\n"
        "topology = Topology('slow')\n"
        "topology.stream('numbers').map(slow).to('slow-out')\n"
    )
    process = start(
        "run", "slow_topology", "--until-end", "--workers", workers, "--batch-records", "1", "--metrics-port", "0"
    )
    until((tmp_path / "begun").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 1
    assert b"slow stopped before the end of its input: " in process.stderr.read().splitlines()[-1]


def test_a_second_interrupt_is_told(headrace, start, tmp_path):
    fill(headrace, 1)
    (tmp_path / "stuck_topology.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from headrace import Topology\n"
        "def stuck(row):\n"
        "    Path('begun').touch()\n"
        "    time.sleep(60)\n"
        "topology = Topology('stuck')\n"
        "topology.stream('numbers').map(stuck).to('stuck-out')\n"
    )
    process = start("run", "stuck_topology", "--metrics-port", "0")
    until((tmp_path / "begun").exists)
    for _ in range(100):  # two that come at once are one
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            break
    assert process.returncode == 130
    assert b"stuck ended at once: the next run goes on from the last checkpoints" in process.stderr.read()


def test_a_misspelt_variable_is_told(headrace, module, monkeypatch):
    fill(headrace, 1)
    monkeypatch.setenv("HEADRACE_GARANTEE", "exactly-once")
    ran = headrace("run", module, "--until-end", "--metrics-port", "0")
    assert ran.code == 0
    assert "HEADRACE_GARANTEE is no setting and was passed over; is HEADRACE_GUARANTEE meant?" in ran.err


def test_describe_takes_partitions_from_the_log(headrace, module, log):
    log.create_topic("numbers", 7)
    ran = headrace("describe", module)
    assert (ran.code, ran.err) == (0, "")
    assert "7 tasks" in ran.out
    assert "9 tasks" in headrace("describe", module, "--partitions", "9").out


def test_describe_says_so_when_it_guesses_and_makes_no_log(headrace, module, tmp_path):
    before = set(tmp_path.iterdir())
    ran = headrace("describe", module, "--format", "json")
    assert ran.json["subtopologies"][0]["tasks"] == 4
    assert "drawn with 4 partitions: numbers" in ran.err
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"__pycache__"}
    assert headrace("describe", module, "--format", "mermaid").out.startswith("flowchart")
    assert headrace("describe", module, "--format", "poem").code == 2


class Steps:
    """A clock that is set by hand."""

    now = 0

    def now_ms(self):
        return self.now

    def monotonic_ms(self):
        return self.now


def shown(capsys, until_end, statuses):
    clock = Steps()
    with RunProgress(clock, until_end=until_end, label="spend") as progress:
        for second, status in statuses:
            clock.now = 1000 * second
            progress.update(dataclasses.replace(STATUS, **status))
    return capsys.readouterr().err.splitlines()


def test_without_a_terminal_there_is_a_line_every_ten_seconds(capsys):
    told = shown(capsys, True, [(second, {"records_in": 10 * second}) for second in range(25)])
    assert told == [
        "spend: 100 of 1,000 records, 4 tasks, 10 records/s",
        "spend: 200 of 1,000 records, 4 tasks, 10 records/s",
    ]


def test_without_a_terminal_and_an_end_there_are_changes_of_state_only(capsys):
    states = ["starting", "restoring", *["running"] * 50, "draining", "finished"]
    told = shown(capsys, False, [(n, {"state": state, "metrics_url": "http://h:1"}) for n, state in enumerate(states)])
    assert told == [
        "spend: metrics at http://h:1/metrics",
        *(f"spend: {s}" for s in ("restoring", "running", "draining")),
    ]


class Terminal:
    """Standard error as a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        self.flushed = True

    def fileno(self):
        raise OSError


@pytest.mark.parametrize("until_end", [True, False])
def test_on_a_terminal_it_is_live(monkeypatch, until_end):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    clock = Steps()
    with RunProgress(clock, until_end=until_end, label="spend") as progress:
        for second in range(5):
            clock.now = 1000 * second
            status = {"records_in": 100 * second, "restoring": 1, "lag_records": 77, "watermark_ms": 0}
            progress.update(dataclasses.replace(STATUS, **status))
    assert "4 tasks, restoring 1 task, 100 records/s" in terminal.text
    if until_end:
        assert "400/1000" in terminal.text
    else:
        assert "lag 77, watermark 1970-01-01 00:00:00Z" in terminal.text


def test_a_restore_shows_its_bytes_and_what_tasks_wait_for_is_told_once(capsys):
    megabyte = 1024**2
    steps = [
        {"state": "restoring", "restoring": 3, "restored_bytes": 120 * megabyte, "restore_bytes": 800 * megabyte},
        *[{"waiting": (("checkpoint", ("in-0", "in-1")),)}] * 3,
        {"waiting": (("checkpoint", ("in-0",)), ("log", ("in-1",)))},
        {},
    ]
    assert shown(capsys, False, list(enumerate(steps))) == [
        "spend: restoring",
        "spend: running, waiting for checkpoints",
        "spend: waiting for checkpoints, waiting for the log",
        "spend: running",
    ]
    told = shown(capsys, True, [(10 * n, step) for n, step in enumerate(steps)])
    assert "restoring 3 tasks, 120 of 800 MB" in " ".join(shown(capsys, True, [(0, steps[0]), (10, steps[0])]))
    assert told[0].count("waiting for checkpoints") == 1


def test_a_rate_forgets_what_is_long_ago():
    rate = Rate()
    told = [rate.update(1000 * second, 100 * min(second, 10)) for second in range(30)]
    assert told[10] == "100 records/s"
    assert told[-1] == "0 records/s"


def test_the_summary_says_what_happened():
    status = dataclasses.replace(STATUS, state="finished", records_in=1000, records_out=5, late=2, errors=1)
    assert summary("spend", status, 2000) == (
        "spend finished: 1,000 records in, 5 out, 2 late, 1 errors in 2.0 s (500 records/s)"
    )
    assert summary("spend", dataclasses.replace(status, total=None), 2000).startswith("spend stopped: ")
    stopped = dataclasses.replace(status, state="stopped")
    assert summary("spend", stopped, 2000).startswith("spend stopped before the end of its input: ")
