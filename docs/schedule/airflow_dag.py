"""An Airflow DAG (3.0 or later): train on Mondays at two, then categorize by what is in service."""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="shelfmark_weekly",
    schedule="0 2 * * 1",
    start_date=datetime(2026, 1, 5),
    catchup=False,  # only this week's catalogue is there
    max_active_runs=1,
    default_args={"cwd": "/srv/shop", "append_env": True, "retry_delay": timedelta(minutes=10)},
) as dag:
    retrain = BashOperator(
        task_id="retrain",
        # exec: SIGTERM of Airflow reaches shelfmark itself
        bash_command="exec shelfmark retrain manifest.csv --workspace W --config weekly.toml",
        skip_on_exit_code=3,  # finished, and the old release stays
        retries=3,  # after a kill, a time limit, or another job's lock the same command continues
        execution_timeout=timedelta(hours=24),
    )
    categorize = BashOperator(
        task_id="categorize",
        bash_command="exec shelfmark categorize new.csv --workspace W --output decisions.parquet",
        trigger_rule="all_done",  # the old release decides where there is no new one
        retries=3,
    )
    retrain >> categorize
