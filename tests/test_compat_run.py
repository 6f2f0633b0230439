"""hal run: the program is Python's own to run, and what it starts is served too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hal.__main__ import main

ROOT = Path(__file__).parents[1]
LINE = "hal run: flash_attn 2.8.3.post1 and flash_attn_interface 3.0.0 answered by HAL on cpu:"


def program(folder: Path, text: str, name: str = "program.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run(folder: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HAL_")} | variables
    return subprocess.run([sys.executable, "-m", "hal", "run", *args], cwd=folder, env=environ, capture_output=True,
                          text=True, timeout=120, check=False)


def test_the_line_and_the_functions(tmp_path: Path) -> None:
    program(tmp_path, """
import torch
from flash_attn import flash_attn_func
x = torch.ones(1, 3, 2, 64)
print(flash_attn_func(x, x, x).shape)
""")
    done = run(tmp_path, "--device", "cpu", "--attention-backend", "torch", "program.py")
    assert (done.returncode, done.stdout) == (0, "torch.Size([1, 3, 2, 64])\n"), done.stderr
    assert done.stderr.startswith(LINE)
    assert done.stderr.endswith("(kernels: torch)\n")
    assert done.stderr.count("\n") == 1


def test_verbose_shows_the_decision(tmp_path: Path) -> None:
    program(tmp_path, "import sys; print(sys.argv)")
    done = run(tmp_path, "-v", "--attention-backend", "torch", "program.py", "-v")
    assert done.stdout == "['program.py', '-v']\n"
    assert "prefill and decode: torch" in done.stderr


SHOW = """
import __main__, json, sys
print(json.dumps([sys.argv, sys.path[0], __name__, __main__.__file__, __package__, "flash_attn" in sys.modules]))
"""


def test_argv_path_and_main_are_as_python_has_them(tmp_path: Path) -> None:
    program(tmp_path, SHOW, "somewhere/program.py")
    program(tmp_path, "", "package/__init__.py")
    program(tmp_path, SHOW, "package/module.py")
    program(tmp_path, SHOW, "folder/__main__.py")
    for words in (["somewhere/program.py", "a", "--device", "cuda", "-m", "--help"],
                  ["-m", "package.module", "--json", "-v"], ["folder", "x"]):
        plain = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert run(tmp_path, *words).stdout == plain.stdout
        assert run(tmp_path, "--flash-attn-version", "2", *words).stdout == plain.stdout


@pytest.mark.parametrize(("text", "code"), [
    ("import sys; sys.exit(7)", 7), ("import sys; sys.exit('gone')", 1), ("raise SystemExit", 0), ("1 / 0", 1),
    ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT), ("import os; os._exit(3)", 3),
    ("def broken(:", 1)])
def test_exit_codes_pass_through(tmp_path: Path, text: str, code: int) -> None:
    program(tmp_path, text)
    plain = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    done = run(tmp_path, "program.py")
    assert done.returncode == plain.returncode == code
    assert done.stderr.partition("\n")[2] == plain.stderr


def test_a_signal_to_it_reaches_the_program(tmp_path: Path) -> None:
    program(tmp_path, """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
print("ready", flush=True)
time.sleep(60)
""")
    process = subprocess.Popen([sys.executable, "-m", "hal", "run", "program.py"], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 42
    process.stdout.close()


def test_processes_below_it_are_served(tmp_path: Path) -> None:
    program(tmp_path, """
import multiprocessing, subprocess, sys

def work(_):
    import flash_attn
    return flash_attn.__version__

if __name__ == "__main__":
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(method, pool.map(work, [0]))
    print(subprocess.check_output([sys.executable, "-c", "import flash_attn_interface as f; print(f.__version__)"], text=True))
""")
    done = run(tmp_path, "program.py")
    assert done.stdout.split("\n")[:3] == ["spawn ['2.8.3.post1']", "fork ['2.8.3.post1']", "3.0.0"], done.stderr
    assert done.stderr.count("hal run") == 1


def test_another_sitecustomize_runs_too(tmp_path: Path) -> None:
    program(tmp_path, "import builtins\nbuiltins.theirs = 1\n", "site/sitecustomize.py")
    program(tmp_path, "import flash_attn, builtins\nprint(builtins.theirs, flash_attn.__version__)")
    done = run(tmp_path, "program.py", PYTHONPATH=f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    assert done.stdout == "1 2.8.3.post1\n", done.stderr


def test_probes_below_it_ask_about_the_real_packages(tmp_path: Path) -> None:
    program(tmp_path, """
import importlib.util
from hal.host import Host
assert importlib.util.find_spec("flash_attn") is not None
print(Host().import_error("flash_attn.flash_attn_interface"), Host().find_module("flash_attn"))
""")
    done = run(tmp_path, "program.py")
    assert done.stdout == ("importing flash_attn.flash_attn_interface failed: ModuleNotFoundError: No module named "
                           "'flash_attn' None\n"), done.stderr


TRUTHFUL = "import sys, flash_attn\nprint('the program', flash_attn.__version__)"
# As tracing agents do: run, then run the next one.
CHAINS = """
import importlib.machinery, importlib.util, os, sys
print("theirs")
here = os.path.dirname(os.path.abspath(__file__))
rest = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]
spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
spec is None or spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


def test_one_that_runs_the_next_one_too(tmp_path: Path) -> None:
    program(tmp_path, TRUTHFUL)
    program(tmp_path, CHAINS, "a/sitecustomize.py")
    program(tmp_path, "print('last')", "b/sitecustomize.py")
    done = run(tmp_path, "program.py", PYTHONPATH=os.pathsep.join(map(str, (tmp_path / "a", tmp_path / "b", ROOT))))
    # Once in `hal run`'s own Python, once in the program's.
    assert done.stdout == "theirs\nlast\n" * 2 + "the program 2.8.3.post1\n", done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_its_own_folder_twice(tmp_path: Path) -> None:
    """Under another name (lib64 is lib in many environments), and that of another HAL."""
    import shutil

    program(tmp_path, TRUTHFUL)
    (tmp_path / "linked").symlink_to(ROOT / "hal" / "compat" / "startup")
    shutil.copytree(ROOT / "hal" / "compat" / "startup", tmp_path / "other")
    program(tmp_path, "print('theirs')", "site/sitecustomize.py")
    folders = [tmp_path / "linked", tmp_path / "other", tmp_path / "site", ROOT]
    done = run(tmp_path, "program.py", PYTHONPATH=os.pathsep.join(map(str, folders)))
    assert done.stdout == "theirs\n" * 2 + "the program 2.8.3.post1\n", done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_another_sitecustomize_that_fails_is_reported_as_by_site(tmp_path: Path) -> None:
    program(tmp_path, TRUTHFUL)
    program(tmp_path, "raise ValueError('theirs')", "site/sitecustomize.py")
    program(tmp_path, "", "empty.py")
    path = f"{tmp_path / 'site'}{os.pathsep}{ROOT}"
    plain = subprocess.run([sys.executable, "empty.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
                           capture_output=True, text=True, check=True)
    done = run(tmp_path, "program.py", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (0, "the program 2.8.3.post1\n")
    # `hal run`'s own Python reports it too, before its line.
    assert done.stderr.partition("hal run:")[2].partition("\n")[2] == plain.stderr != ""


def test_another_sitecustomize_may_import_transformers(tmp_path: Path) -> None:
    program(tmp_path, TRUTHFUL)
    program(tmp_path, "import sys\nif 'hal.compat.installing' in sys.modules: import transformers.utils.import_utils",
            "site/sitecustomize.py")
    done = run(tmp_path, "program.py", PYTHONPATH=f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    assert done.stdout == "the program 2.8.3.post1\n", done.stderr
    assert "Error in sitecustomize" not in done.stderr


@pytest.mark.parametrize(("change", "why"), [
    ({"HAL_FLASH_ATTN": "9"}, "ValueError: HAL_FLASH_ATTN='9' is not valid: expected some of 2,3"),
    ({"HAL_FLASH_ATTN_PYTHON": ""}, "ValueError: HAL_FLASH_ATTN is set and HAL_FLASH_ATTN_PYTHON is not")])
def test_where_hal_can_not_answer_the_process_ends(tmp_path: Path, change: dict[str, str], why: str) -> None:
    program(tmp_path, f"""
import os, subprocess, sys
done = subprocess.run([sys.executable, "-c", "print('it ran')"], env={{**os.environ, **{change!r}}},
                      capture_output=True, text=True)
print([done.returncode, done.stdout, done.stderr])
""")
    done = run(tmp_path, "program.py")
    assert done.stdout.startswith("[2, '', "), done.stdout
    assert f"hal run: HAL can't answer for flash_attn in this process: {why}" in done.stdout


OTHER = """
import importlib.util, subprocess, sys
show = "import importlib.util as u, sys; print([n for n in ('hal', 'flash_attn', 'tests', 'torch') if u.find_spec(n)])"
for python in sys.argv[1:]:
    print(subprocess.check_output([python, "-c", show], text=True, cwd="/"), end="")
"""


def test_interpreters_of_other_environments_are_left_alone(tmp_path: Path) -> None:
    import venv

    venv.create(tmp_path / "venv", symlinks=True)
    program(tmp_path, OTHER)
    done = run(tmp_path, "program.py", str(tmp_path / "venv" / "bin" / "python"), sys.executable)
    other, own = done.stdout.splitlines()
    assert other == "[]", done.stderr
    assert "'flash_attn'" in own


def test_from_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    """HAL is found beside the file, and nothing that lies beside HAL is."""
    import shutil

    shutil.copytree(ROOT / "hal", tmp_path / "checkout" / "hal", ignore=shutil.ignore_patterns("__pycache__"))
    program(tmp_path, "", "checkout/beside.py")
    code = """
import os, runpy, sys
os.environ["HAL_FLASH_ATTN_PYTHON"] = f"{sys.implementation.cache_tag} {os.path.realpath(sys.prefix)}"
runpy.run_path(sys.argv[1])
import importlib.metadata, importlib.util, hal
print(importlib.util.find_spec("flash_attn").name, importlib.metadata.version("flash_attn"), hal.__file__,
      importlib.util.find_spec("beside"))
"""
    startup = tmp_path / "checkout" / "hal" / "compat" / "startup" / "sitecustomize.py"
    done = subprocess.run([sys.executable, "-S", "-c", code, str(startup)], cwd="/", env={"HAL_FLASH_ATTN": "2"},
                          capture_output=True, text=True, check=False)
    assert done.stdout == f"flash_attn 2.8.3.post1 {tmp_path}/checkout/hal/__init__.py None\n", done.stderr


def test_two_dashes_are_the_program_s(tmp_path: Path) -> None:
    program(tmp_path, SHOW)
    for words in (["program.py", "--", "foo"], ["program.py", "--", "--json", "--", "-v"], ["-m", "program", "--", "x"],
                  ["program.py", "a", "--", "b"], ["program.py", "--"]):
        plain = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert run(tmp_path, *words).stdout == plain.stdout
    assert run(tmp_path, "--device", "cpu", "--", "program.py", "--", "x").stdout.startswith('[["program.py", "--", "x"]')


FLAGS = """
import sys, warnings
print(sys.flags, sys.warnoptions, sys._xoptions, sys.stdout.write_through, sys.argv)
"""


def python_run(folder: Path, *flags: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    words = [*flags, "-m", "hal", "run", "--device", "cpu", *([] if text is None else ["-", "a"])]
    return subprocess.run([sys.executable, *words, *(["program.py", "a"] if text is None else [])], cwd=folder,
                          input=text, capture_output=True, text=True, timeout=120, check=False)


def test_flags_of_the_interpreter_are_the_program_s(tmp_path: Path) -> None:
    program(tmp_path, FLAGS)
    flags = ["-O", "-W", "ignore::ImportWarning", "-X", "utf8", "-u", "-B", "-s"]
    plain = subprocess.run([sys.executable, *flags, "program.py", "a"], cwd=tmp_path, capture_output=True, text=True,
                           check=True)
    done = python_run(tmp_path, *flags)
    assert done.stdout == plain.stdout, done.stderr
    assert "optimize=1" in done.stdout


@pytest.mark.parametrize("flag", ["-I", "-E"])
def test_flags_that_keep_it_out_are_refused(tmp_path: Path, flag: str) -> None:
    program(tmp_path, "raise AssertionError('it ran')")
    done = python_run(tmp_path, flag)
    assert done.returncode == 2
    assert f"Python's {flag} keeps `hal run` from reaching the program" in done.stderr


def test_a_program_on_stdin(tmp_path: Path) -> None:
    done = python_run(tmp_path, text="import sys, flash_attn; print(sys.argv, flash_attn.__version__)")
    assert done.stdout == "['-', 'a'] 2.8.3.post1\n", done.stderr


def test_device_and_backend_are_the_program_s(tmp_path: Path) -> None:
    program(tmp_path, "import os; print(os.environ.get('HAL_DEVICE'), os.environ.get('HAL_ATTENTION_BACKEND'), "
                      "os.environ['HAL_FLASH_ATTN'])")
    assert run(tmp_path, "program.py").stdout == "None None 2,3\n"
    done = run(tmp_path, "--device", "cpu", "--attention-backend", "torch_native", "--flash-attn-version", "3",
               "program.py")
    assert done.stdout == "cpu torch_native 3\n"
    assert "hal run: flash_attn_interface 3.0.0 answered by HAL" in done.stderr
    assert run(tmp_path, "program.py", HAL_ATTENTION_BACKEND="torch").stderr.endswith("(kernels: torch)\n")


def test_one_version_alone(tmp_path: Path) -> None:
    program(tmp_path, "import flash_attn_interface\nimport flash_attn")
    done = run(tmp_path, "--flash-attn-version", "3", "program.py")
    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'flash_attn'\n")


@pytest.mark.parametrize(("words", "message"), [
    ([], "the following arguments are required: PROGRAM"),
    (["nowhere.py"], "no such file: nowhere.py (a module is named with -m)"),
    (["--device", "gpu", "program.py"], "device 'gpu' is not known"),
    (["--device", "npu", "program.py"], "device 'npu' is not on this machine"),
    (["--attention-backend", "fa9", "program.py"], "'fa9'"),
    (["--flash-attn-version", "4", "program.py"], "invalid choice: '4'"),
    (["--device", "cpu", "--device", "cuda", "program.py"], "given twice"),
    (["--dev", "cpu", "program.py"], "unrecognized arguments: --dev"),
    (["-m"], "the following arguments are required: PROGRAM")])
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                  words: list[str], message: str) -> None:
    program(tmp_path, "raise AssertionError('it ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAL_DEVICE", raising=False)
    assert main(["run", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_backend_that_can_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    program(tmp_path, "raise AssertionError('it ran')")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--device", "cpu", "--attention-backend", "mate", "program.py"]) == 1
    assert "platform cpu is not supported (mate: musa)" in capsys.readouterr().err


def test_where_the_real_package_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    from hal.commands import run as command
    from hal.platform import Platform

    site = tmp_path / "site"
    for name in ("flash_attn/__init__.py", "flash_attn/flash_attn_interface.py", "flash_attn_interface.py"):
        program(site, "", name)
    program(tmp_path, "raise AssertionError('it ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(command, "detect", lambda device: Platform("cuda", "sm90", "cuda:0", 0, "H100"))
    assert main(["run", "program.py"]) == 2
    assert "cuda:sm90 is served by the installed flash_attn and flash_attn_interface, and HAL" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    said = capsys.readouterr().out
    assert "hal run --device cpu --attention-backend torch -m package.module" in said
    assert "exit codes: the program's" in said
    assert "usage: hal run [options] (program.py | -m module) [arguments...]" in said


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    program(tmp_path, "")
    done = run(tmp_path, "program.py", HAL_FLASH_ATTN="5")
    assert done.returncode == 2
    assert "HAL_FLASH_ATTN='5' is not valid: expected some of 2,3" in done.stderr
