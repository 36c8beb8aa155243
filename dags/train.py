"""The training of every dataset's detector: an Airflow DAG NAME_train for each YAML."""

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Param, task

from pipeline.wiring import GPU, day_param, read_datasets, settings, stretch_of, training_timetable, workspace

DOC = """\
Trains a detector for **{name}** ({description}) and registers it in MLflow as challenger.

Runs by `training.schedule` in the YAML, when a night finds that the detector needs it, and on demand. Learns from the
days from `from` up to, but not including, `to`; by default the {days} days before the run. A run that was killed goes
on where it was.

The challenger is compared with the champion on the same holdout, at the same budget of false alarms. With `promotion:
{promotion}` {what}. The run's log and its MLflow page say what was decided, and why.
"""
WHAT = {
    "auto": "it becomes the champion unless it is worse",
    "human": "a person decides, in `approve`; without an answer within six days it stays challenger",
    "never": "it stays challenger until `nightsift promote`",
}
ASKED = """\
**{{ ti.xcom_pull(task_ids='train')['version'] }}**: {{ ti.xcom_pull(task_ids='train')['reason'] }}

{{ ti.xcom_pull(task_ids='train')['table'] }}
"""
ANSWERED_WITHIN = timedelta(days=6)


class Approval(ApprovalOperator):
    """Airflow's approval, which tells also who rejected: Airflow's own ends a rejection without a result."""

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Keep the answer before what follows is skipped."""
        answer = {name: event.get(name) for name in ("chosen_options", "responded_by_user")}
        context["ti"].xcom_push(key="answer", value=answer)
        return super().execute_complete(context, event)


@task(**GPU)
def train(dataset: str, params: dict[str, Any] | None = None, dag_run: Any = None) -> dict[str, Any]:
    """Fit, calibrate, evaluate and register a detector, compare it with the champion, and decide by the rule.

    Returns its figures.
    """
    from pipeline.train import train

    ws = workspace(dataset)
    stretch = stretch_of(ws.dataset, params or {}, dag_run)
    return asdict(train(ws, *stretch, cause=(params or {}).get("reason")))


@task
def promote(dataset: str, trained: dict[str, Any]) -> dict[str, Any]:
    """Make the approved detector the champion, once it was loaded back and has scored a piece of a day."""
    from pipeline.promotion import number_of, promote

    return asdict(promote(workspace(dataset), number_of(trained["version"])))


@task(trigger_rule="none_failed")
def answer(dataset: str, trained: dict[str, Any], ti: Any = None) -> str:
    """Log to MLflow what was answered, and by whom."""
    from pipeline.promotion import log_answer

    given = ti.xcom_pull(task_ids="approve", key="answer")
    return log_answer(workspace(dataset), trained["run"], trained["version"], given)


for dataset in read_datasets()[0]:
    rule = dataset.training.promotion
    asked = rule == "human"
    with DAG(
        **settings(dataset, "train", hours=24)
        | ({"dagrun_timeout": ANSWERED_WITHIN + timedelta(hours=24)} if asked else {}),
        schedule=training_timetable(dataset),
        max_active_runs=1,
        doc_md=DOC.format(
            name=dataset.name,
            description=dataset.description,
            days=dataset.training.days,
            promotion=rule,
            what=WHAT[rule],
        ),
        params={
            "from": day_param("First day", f"Empty: {dataset.training.days} days before the end"),
            "to": day_param("End", "The day after the last one to learn from; empty: the day of the run"),
            "reason": Param(None, type=["null", "string"], title="Reason", description="Why; logged to MLflow"),
        },
    ):
        trained = train(dataset.name)
        if asked:
            approve = Approval(
                task_id="approve",
                subject=f"Promote the new detector of {dataset.name}?",
                body=ASKED,
                defaults=Approval.REJECT,
                response_timeout=ANSWERED_WITHIN,
                doc_md="Ask a person whether the challenger becomes the champion; the body compares the two.",
            )
            trained >> approve >> promote(dataset.name, trained) >> answer(dataset.name, trained)
