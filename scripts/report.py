"""Write one page about all runs (`make report`)."""

from stage import run_stage

from reports.overview import OverviewConfig, write_overview


def main(config: OverviewConfig) -> None:
    """Write report/index.html, and its numbers as all.md and all.json."""
    print(write_overview(config).resolve())


if __name__ == "__main__":
    run_stage("report", OverviewConfig, main)
