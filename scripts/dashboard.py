"""Write the convergence dashboard, one page to look at (`make dashboard`)."""

from stage import run_stage

from reports.dashboard import DashboardConfig, write_dashboard


def main(config: DashboardConfig) -> None:
    """Write report/dashboard.html, and the same panels to wandb with wandb=true."""
    print(write_dashboard(config).resolve())


if __name__ == "__main__":
    run_stage("dashboard", DashboardConfig, main)
