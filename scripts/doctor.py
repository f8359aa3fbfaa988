"""Say what is probably wrong with the results of a run (`make doctor`)."""

from dataclasses import dataclass

from stage import run_stage

from reports.doctor.doctor import diagnose, read_results, render_findings


@dataclass(kw_only=True)
class DoctorStage:
    run: str | None = None  # its directory: every file of results but the likelihood
    results: str | None = None  # one file


def main(stage: DoctorStage) -> None:
    """Print what is wrong with eval/*.json of a run, or with one file, and what to type."""
    files = read_results(stage.run, stage.results)
    found = {
        path: diagnose(results, [other for name, other in files.items() if name != path])
        for path, results in files.items()
    }
    print(render_findings(found))


if __name__ == "__main__":
    run_stage("doctor", DoctorStage, main)
