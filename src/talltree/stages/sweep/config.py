"""The options of the sweep stage: how a study is run. What is studied stands in its file (`study.Study`)."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Any, Literal

from talltree.config import option
from talltree.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config:
    """Runs a study, a YAML file of stages, settings and seeds, or continues it where it was."""

    study: str = option(MISSING, "YAML file of the study; docs/sweeps.md explains its keys")
    set: dict[str, Any] = option(
        {}, "options on top of those of the file, by the names that its grid would use, as in '{steps: 50}'"
    )
    seeds: list[int] | int | None = option(
        None, "the seeds, or how many, instead of the file's", unit="seeds", low=0
    )
    output_dir: str | None = option(
        None, "study folder; null: runs/NAME; one that exists is continued, nothing finished is run again"
    )
    jobs: int = option(1, "stages that run at once, each a process of its own", unit="processes", low=1)
    threads: int | None = option(
        None,
        "OMP_NUM_THREADS of each process; null: this machine's cores divided among the jobs, with ray those "
        "of cpus_per_trial",
        unit="threads",
        low=1,
    )
    gpus: list[int] | None = option(
        None, "engine local: GPUs to share out, job after job; null: every process sees them all", low=0
    )
    engine: Literal["local", "ray"] = option("local", "this machine, or the machines of a Ray cluster")
    address: str | None = option(
        None, "engine ray: HOST:PORT of the head, or auto; null: a Ray of its own on this machine"
    )
    cpus_per_trial: float = option(1.0, "engine ray: cores that a process is given", unit="cores", above=0)
    gpus_per_trial: float = option(0.0, "engine ray: GPUs that a process is given", unit="GPUs", low=0)
    yes: bool = option(False, "start a study of many trials without asking")
    report: bool = option(True, "write report.html when the trials have ended")
    plan: bool = option(False, "say what would run, and run nothing")

    def check(self) -> None:
        """Raises ConfigError for options of the other engine."""
        of_ray = {
            "address": self.address is not None,
            "cpus_per_trial": self.cpus_per_trial != 1.0,
            "gpus_per_trial": self.gpus_per_trial != 0.0,
        }
        if self.engine == "local" and any(of_ray.values()):
            name = next(name for name, given in of_ray.items() if given)
            raise ConfigError(f"{name} belongs to --engine ray and would change nothing here; leave it out")
        if self.engine == "ray" and self.gpus is not None:
            raise ConfigError("gpus belongs to --engine local; with ray say --gpus_per_trial 1")
