//! What happens in a run, as one flat JSON object an event.

use protocol::{Metrics, TaskId};
use serde_json::{Map, Value, json};
use server::{Note, RunEnd};

/// The object for `note` at `seconds` since the origin of its clock.
pub fn event_json(seconds: f64, note: &Note) -> Value {
    let (event, body) = match note {
        Note::Waiting { connected, needed } => {
            ("waiting", json!({ "connected": connected, "needed": needed }))
        }
        Note::Opened { task, cohort } => ("opened", with_task(*task, json!({ "cohort": cohort }))),
        Note::Accepted { client, task, metrics } => (
            "accepted",
            with_task(*task, json!({ "client": client.as_str(), "metrics": metrics_json(*metrics) })),
        ),
        Note::Refused { client, task, reason, detail } => {
            let body = json!({ "client": client.as_str(), "reason": reason.name(), "detail": detail });
            ("refused", task.map_or_else(|| body.clone(), |task| with_task(task, body.clone())))
        }
        Note::Declined { client, task, reason, detail } => {
            let body = json!({ "client": client.as_str(), "reason": reason.name(), "detail": detail });
            ("declined", with_task(*task, body))
        }
        Note::Closed { task, answered, missing, surplus, quorum } => {
            let body =
                json!({ "answered": answered, "missing": missing, "surplus": surplus, "quorum": quorum });
            ("closed", with_task(*task, body))
        }
        Note::Withheld { task, reason } => ("withheld", with_task(*task, json!({ "reason": reason }))),
        Note::Warned { task, warning } => ("warned", with_task(*task, json!({ "warning": warning }))),
        Note::Round(summary) => (
            "round",
            json!({
                "round": summary.round,
                "released": summary.released,
                "cohort": summary.participation().map(|(asked, _)| asked),
                "answered": summary.participation().map(|(_, answered)| answered),
                "train": metrics_json(summary.train),
                "sites": metrics_json(summary.sites),
                "central": metrics_json(summary.central),
                "seconds": summary.seconds,
            }),
        ),
        Note::Ended(end @ (RunEnd::Finished | RunEnd::Stopped)) => ("ended", json!({ "state": end.state() })),
        Note::Ended(end @ (RunEnd::Failed(why) | RunEnd::BudgetExhausted(why))) => {
            ("ended", json!({ "state": end.state(), "message": why }))
        }
        _ => ("other", json!({})),
    };
    let mut object = Map::new();
    object.insert("event".into(), event.into());
    object.insert("time".into(), json!(seconds));
    if let Value::Object(body) = body {
        object.extend(body);
    }
    Value::Object(object)
}

fn with_task(task: TaskId, mut body: Value) -> Value {
    if let Value::Object(body) = &mut body {
        body.insert("round".into(), task.round.0.into());
        body.insert("task".into(), task.step_title().into());
    }
    body
}

fn metrics_json(metrics: Option<Metrics>) -> Value {
    metrics.map_or(Value::Null, |metrics| {
        json!({
            "loss": metrics.loss,
            "accuracy": metrics.accuracy,
            "examples": metrics.examples,
            "seconds": metrics.seconds,
        })
    })
}
