"""launch/cluster/: syntax, what they would run, and two hosts over an ssh that stays on this machine."""

import os
import shlex
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import yaml
from processes import ROOT, free_port

FOLDER = ROOT / "launch/cluster"
# In the place of ssh: runs the command here, as a shell of the other host would, and says which host it was.
SSH = '#!/usr/bin/env bash\nexport HOST=$1; shift; exec bash -c "$*"\n'


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*map(str, command)], env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def hosts(tmp_path):
    """(a list of two hosts, the environment in which ssh reaches them)."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    (tmp_path / "hosts").write_text("# of the second floor\n\nlocalhost  # the first\nsomeone@second\n")
    return tmp_path / "hosts", {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable}


@pytest.mark.parametrize("path", sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")]), ids=lambda path: path.name)
def test_bash_reads_it(path):
    done = run("bash", "-n", path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["ssh.sh", "tpu_vm.sh"])
def test_without_arguments_it_says_how_it_is_used(name):
    done = run(FOLDER / name)
    assert done.returncode == 2
    assert f"launch/cluster/{name} [--dry_run]" in done.stderr and "set -euo" not in done.stderr


def test_ssh_gives_every_host_its_number_and_all_settings_as_typed(hosts, tmp_path):
    (tmp_path / "a check out/launch").mkdir(parents=True)
    (tmp_path / "a check out/launch/train.py").write_text(
        "import os, sys\nprint(os.environ['HOST'], os.getcwd(), sys.argv[1:])\n"
    )
    settings = ["--config", "music", "--config.data.source=my recordings; $HOME"]
    done = run(FOLDER / "ssh.sh", hosts[0], tmp_path / "a check out", *settings, **hosts[1], PORT="77")
    assert done.returncode == 0, done.stderr
    told = [*settings, "--coordinator=localhost:77", "--num_processes=2"]
    for index, host in enumerate(("localhost", "someone@second")):
        line = f"{host}: {host} {tmp_path / 'a check out'} {[*told, f'--process_id={index}']}"
        assert line in done.stdout.splitlines()


@pytest.mark.parametrize("codes, wanted", [((0, 0), 0), ((75, 1), 1), ((1, 75), 1), ((0, 255), 75), ((75, 75), 75)])
def test_ssh_ends_with_what_has_to_be_done(hosts, tmp_path, codes, wanted):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/train.py").write_text(f"import sys\nsys.exit({list(codes)}[int(sys.argv[-1][-1])])\n")
    assert run(FOLDER / "ssh.sh", hosts[0], tmp_path, "--x", **hosts[1]).returncode == wanted


def test_ssh_stopped_has_all_hosts_save(hosts, tmp_path):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/train.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', sys.argv[-1], flush=True), sys.exit(75)))\n"
        "print('training', flush=True)\ntime.sleep(100)\n"
    )
    command = [str(FOLDER / "ssh.sh"), str(hosts[0]), str(tmp_path), "--config=music"]
    environment = os.environ | hosts[1] | {"PORT": str(free_port())}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as launcher:
        assert {launcher.stdout.readline(), launcher.stdout.readline()} == {
            "localhost: training\n",
            "someone@second: training\n",
        }
        launcher.terminate()
        said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 75
    assert all(f"saved --process_id={index}" in said for index in (0, 1))


def test_two_hosts_over_ssh_are_one_job(hosts, tmp_path):
    """Both processes join, agree, and refuse one setting; the first one says so."""
    settings = ["--config", "tests/smallest.py", f"--config.run_dir={tmp_path / 'run'}", "--config.mesh.fsdp=3"]
    done = run(
        FOLDER / "ssh.sh", hosts[0], ROOT, *settings, **hosts[1], PORT=str(free_port()), JAX_PLATFORMS="cpu",
        PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}", XLA_FLAGS="--xla_force_host_platform_device_count=1",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "fsdp" in done.stdout and "2 devices" in done.stdout


def test_what_a_tpu_slice_is_asked_for():
    names = {"NAME": "music", "ZONE": "us-central2-b", "TYPE": "v5litepod-64", "VERSION": "v2-alpha-tpuv5-lite"}
    done = run(FOLDER / "tpu_vm.sh", "--dry_run", "create", "--spot", **names)
    assert done.stdout.split() == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "music", "--node-id=music"),
        *("--zone=us-central2-b", "--accelerator-type=v5litepod-64", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ]
    settings = ["--config", "music", "--config.data.source=my recordings"]
    done = run(FOLDER / "tpu_vm.sh", "--dry_run", "train", *settings, **names)
    *_, workers, command = shlex.split(done.stdout)
    assert workers == "--worker=all"
    assert shlex.split(command.removeprefix("--command="))[-4:] == ["launch/train.py", *settings]
    missing = run(FOLDER / "tpu_vm.sh", "--dry_run", "create", **names | {"TYPE": ""})
    assert missing.returncode and "TYPE" in missing.stderr


def test_the_job_set_has_a_pod_for_every_host_of_its_slice():
    (job,) = yaml.safe_load((FOLDER / "gke_jobset.yaml").read_text())["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert spec["parallelism"] == spec["completions"] == chips // container["resources"]["limits"]["google.com/tpu"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"] and 75 not in rule["onExitCodes"]["values"]
    assert Path(container["command"][1]) == Path("launch/train.py")
