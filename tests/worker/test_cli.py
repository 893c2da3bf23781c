import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from model.contract.errors import FunnelcastError
from worker import cli
from worker.cli import COMMANDS, Command, main


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[object], int]], None]:
    """Install a command `fake` that does what it is given."""

    def install(run: Callable[[object], int]) -> None:
        module = ModuleType("fake_command")
        module.add_arguments = lambda parser: parser.add_argument("--n", type=int)  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_command", module)
        monkeypatch.setitem(COMMANDS, "fake", Command("fake_command", "pretend", "train"))

    return install


def raises(error: BaseException) -> Callable[[object], int]:
    def run(arguments: object) -> int:
        raise error

    return run


def test_a_command_gets_its_arguments_and_gives_the_exit_code(command: Callable[..., None]) -> None:
    command(lambda arguments: arguments.n)
    assert main(["fake", "--n", "7"]) == 7


def test_a_refusal_is_one_line_on_stderr_and_exit_code_2(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raises(FunnelcastError("found a, expected b; do c")))
    assert main(["fake"]) == 2
    assert capsys.readouterr() == ("", "funnelcast: found a, expected b; do c\n")


def test_ctrl_c_exits_130_without_a_word(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(raises(KeyboardInterrupt()))
    assert main(["fake"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raises(ModuleNotFoundError("No module named 'torch'", name="torch.nn")))
    assert main(["fake"]) == 2
    assert "needs torch, which is not installed; run pip install 'funnelcast[train]'" in capsys.readouterr().err


def test_a_missing_module_of_our_own_is_a_fault_and_not_an_extra(command: Callable[..., None]) -> None:
    command(raises(ModuleNotFoundError("No module named 'worker.nothing'", name="worker.nothing")))
    with pytest.raises(ModuleNotFoundError):
        main(["fake"])


def test_an_unknown_command_or_none_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["nonsense"], []):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
    assert "topics" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert COMMANDS[name].help in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["topics", "worker", "replay", "watch", "score", "simulate"])
def test_what_runs_beside_the_broker_needs_no_torch(name: str) -> None:
    script = f"""
import sys
sys.modules["torch"] = None
from worker.cli import main
main([{name!r}, "--help"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_output_into_a_closed_pipe_ends_without_a_traceback() -> None:
    script = (
        "import worker.cli as c; c._run = lambda *_: print('x' * 1_000_000) or 0; raise SystemExit(c.main(['topics']))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (cli.EXIT_BROKEN_PIPE, b"")
