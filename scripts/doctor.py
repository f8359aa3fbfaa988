"""Print probable causes of wrong results of a run (`make doctor`)."""

from dataclasses import dataclass

from stage import run_stage

from masc.runtime.errors import printable
from reports.doctor.doctor import diagnose, read_results, render_findings


@dataclass(kw_only=True)
class DoctorStage:
    run: str | None = None  # its directory, for all files of results except the likelihood
    results: str | None = None  # one file


def main(stage: DoctorStage) -> None:
    """Print the probable errors in eval/*.json of a run, or in one file, and the commands that correct them."""
    files = read_results(stage.run, stage.results)
    found = {
        path: diagnose(results, [other for name, other in files.items() if name != path])
        for path, results in files.items()
    }
    print(printable(render_findings(found)))


if __name__ == "__main__":
    run_stage("doctor", DoctorStage, main)
